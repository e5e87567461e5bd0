// SPDX-License-Identifier: Apache-2.0
//
// The per-CPU slab protocol: sections (Pop, Push, PopBatch, PushBatch) against Stop, Fence, Drain,
// Swap, Start and FirstUse, on a kernel whose rules are parameters. README.md says what is and is
// not modelled; check.py lists the configurations and what each must yield.
//
// One atomic block is one instruction (one memory access) of user space or one action of the
// kernel. Between any two of them the kernel may preempt, resume or migrate any thread.
//
// Parameters (-D), all 0 or 1 unless said otherwise:
//   ABORT_PREEMPT ABORT_MIGRATE ABORT_FENCE  what aborts a section
//   REWRITE        cpu_id_start is rewritten at same-CPU resumption and by a fence
//   LEGACY CID WEAK BATCH SWAP STOP_BOTH FIRST_USE   scheme, index, memory, operations, scope
//   OBJECTS        number of objects
//   and one mutation: NO_FENCE FENCE_BEFORE_CLOSE EARLY_PUBLISH STALE_INDEX REMOTE_WRITE
//   TWO_COMMITS RELAXED_PUBLISH CALLER_NO_BARRIER TARGET_NO_BARRIER FENCE_ONE_CPU UNLOCKED_FIRST_USE

// ---- Memory: slab_of[cpu], then per slab: current, end, slot[0 .. CAPACITY] ----------------------
#define THREADS 2
#define CAPACITY 2
#define SLABS 4  // 0 is the closed slab, 1 and 2 are made on first use of CPU 0 and 1, 3 is a spare
#define CLOSED 0
#define STRIDE (CAPACITY + 3)
#define SLAB_OF(c) (c)
#define CURRENT(s) (2 + (s) * STRIDE)  // index of the next free slot; 1 when the slab is empty
#define END(s) (3 + (s) * STRIDE)
#define SLOT(s, i) (4 + (s) * STRIDE + (i))
#define LOCATIONS (2 + SLABS * STRIDE)
#define MARK 0          // what slot[0] holds: the slab is empty
#define UNINITIALISED 0 // `current` of memory that no one has made a slab yet
#define JUNK 99

#define STOPPER_CPU 2  // the stopper has a CPU of its own, so it runs beside everything
byte mem[LOCATIONS];

#if WEAK
// Per CPU a store buffer that empties in any order, except for stores to one location.
#define NOTHING 255
byte buffer[3 * LOCATIONS];
#define PENDING(c, l) (buffer[(c) * LOCATIONS + (l)] != NOTHING)
#define LOAD(c, l) (PENDING(c, l) -> buffer[(c) * LOCATIONS + (l)] : mem[l])
#define STORE(c, l, v) buffer[(c) * LOCATIONS + (l)] = v
#define FLUSH(c, l) mem[l] = buffer[(c) * LOCATIONS + (l)]; buffer[(c) * LOCATIONS + (l)] = NOTHING
#define BARRIER(c) \
  l = 0; \
  do \
  :: l < LOCATIONS && PENDING(c, l) -> FLUSH(c, l); l++ \
  :: l < LOCATIONS && !PENDING(c, l) -> l++ \
  :: l == LOCATIONS -> l = 0; break \
  od
#else
#define LOAD(c, l) mem[l]
#define STORE(c, l, v) mem[l] = v
#define BARRIER(c) skip
#endif

#if RELAXED_PUBLISH
#define RELEASE(c) skip
#else
#define RELEASE(c) BARRIER(c)
#endif

// The kernel acts when the thread returns to user space. Where every resumption has the same effect
// it is applied at the preemption already: a thread that does not run cannot tell, and there are
// far fewer states.
#define RESUMPTIONS_ALIKE (ABORT_PREEMPT == ABORT_MIGRATE && (REWRITE || !LEGACY))

// ---- What the properties are stated over (no real counterpart) -----------------------------------
// place[o] is where object o is: the pool (central list), a slab, or in a thread's hands.
#define POOL 0
#define HELD_BY(t) (SLABS + (t))
byte place[OBJECTS + 1];  // objects are 1 .. OBJECTS
byte slab_for[2];         // the slab made for a CPU, 0 while none; under that CPU's lock
byte spare = 3;
byte owned;               // the slab that the stopper owns with plain loads and stores
bool busy[THREADS + 1];

#define Move(o, from, to) \
  assert(o >= 1 && o <= OBJECTS); /* else: no object at all, an empty or foreign slot */ \
  assert(place[o] == from);       /* else: double allocation */ \
  place[o] = to

// A slot at or above `current` is dead. Where memory is simple it is poisoned: whoever acts on it is
// caught at once, and stale contents do not multiply the states. (Uncommitted stores are in dead
// slots too; they die with the section's abort, when no other section can be under way there.)
#define POISON (!WEAK && RESUMPTIONS_ALIKE && ABORT_PREEMPT && ABORT_FENCE)
#if POISON
#define Poison(s, i) mem[SLOT(s, i)] = JUNK
#define PoisonDead(index) \
  if \
  :: mem[CURRENT(slab_for[index])] <= 1 -> \
     Poison(slab_for[index], 1); Poison(slab_for[index], 2) \
  :: mem[CURRENT(slab_for[index])] == 2 -> Poison(slab_for[index], 2) \
  :: else \
  fi
#else
#define Poison(s, i) skip
#define PoisonDead(index) skip
#endif

// ---- Kernel --------------------------------------------------------------------------------------
#define OFF 2            // seat[t] = cpu: running there; cpu + OFF: preempted, last ran there
byte seat[THREADS];
bit in_section[THREADS]; // rseq_cs is armed and the instruction pointer is inside
bit doomed[THREADS];     // the kernel moved the instruction pointer to the abort handler
#define running(t) (seat[t] < OFF)
#define idle_cpu(c) (seat[0] != c && seat[1] != c)

#if CID
byte cid[THREADS];       // mm_cid: exclusive among running threads, not tied to a CPU
#define INDEX(t) cid[t]
#define idle_cid(t, i) (!running(1 - (t)) || cid[1 - (t)] != i)
#else
#define INDEX(t) seat[t]
#endif

#if LEGACY
#define INVALID 0
#define MARKER 9
byte word[THREADS];      // the cached pointer that overlays cpu_id_start
#define Rewrite(t) word[t] = INVALID
#else
#define Rewrite(t) skip
#endif

// The thread's uncommitted slot stores are dead from here on.
#define Abort(t, index) \
  if \
  :: in_section[t] -> in_section[t] = 0; doomed[t] = 1; PoisonDead(index) \
  :: else \
  fi

inline ReturnToUser(t, index, abort, rewrite) {
  if
  :: rewrite -> Rewrite(t)
  :: else
  fi;
  if
  :: abort -> Abort(t, index)
  :: else
  fi
}

#if RESUMPTIONS_ALIKE
inline Preempt(t) {
  ReturnToUser(t, INDEX(t), ABORT_PREEMPT, 1);
  seat[t] = OFF
}

inline Resume(t, c) {
  seat[t] = c;
  printf("kernel    T%d resumes on cpu %d, aborted=%d\n", t, c, doomed[t])
}
#else
inline Preempt(t) {
  seat[t] = seat[t] + OFF
}

inline Resume(t, c) {
  if
  :: seat[t] == c + OFF -> ReturnToUser(t, 0, ABORT_PREEMPT, REWRITE)
  :: else -> ReturnToUser(t, 0, ABORT_MIGRATE, 1)
  fi;
  printf("kernel    T%d resumes on cpu %d, was on %d, aborted=%d\n", t, c, seat[t] - OFF, doomed[t]);
  seat[t] = c
}
#endif

proctype kernel(byte t) {
  byte l;
  do
  :: atomic { running(t) ->
       printf("kernel    preempts T%d on cpu %d\n", t, seat[t]);
       BARRIER(seat[t]);
       Preempt(t) }
#if CID
  :: atomic { !running(t) && idle_cpu(0) && idle_cid(t, 0) -> cid[t] = 0; Resume(t, 0) }
  :: atomic { !running(t) && idle_cpu(0) && idle_cid(t, 1) -> cid[t] = 1; Resume(t, 0) }
  :: atomic { !running(t) && idle_cpu(1) && idle_cid(t, 0) -> cid[t] = 0; Resume(t, 1) }
  :: atomic { !running(t) && idle_cpu(1) && idle_cid(t, 1) -> cid[t] = 1; Resume(t, 1) }
#else
  :: atomic { !running(t) && idle_cpu(0) -> Resume(t, 0) }
  :: atomic { !running(t) && idle_cpu(1) -> Resume(t, 1) }
#endif
  od
}

#define CheckCommit(t, s) \
  assert(s != owned);              /* else: commit on a slab that the stopper owns */ \
  assert(slab_for[INDEX(t)] == s)  /* else: commit on another CPU's slab */

// Conservation: with nobody inside an operation every object is in exactly the place it should be.
proctype quiescence() {
  byte c, i, n, o, inside;
  do
  :: d_step { !busy[0] && !busy[1] && !busy[THREADS] ->
       inside = 0;
       c = 0;
       do
       :: c < 2 && slab_for[c] != CLOSED ->
          n = LOAD(c, CURRENT(slab_for[c]));
          i = 1;
          do
          :: i < n ->
             o = LOAD(c, SLOT(slab_for[c], i));
             assert(o >= 1 && o <= OBJECTS);
             assert(place[o] == slab_for[c]);
             assert((inside & (1 << o)) == 0);  // else: one object in two slots
             inside = inside | (1 << o);
             i++
          :: else -> break
          od;
          c++
       :: c < 2 && slab_for[c] == CLOSED -> c++
       :: else -> break
       od;
       o = 1;
       do
       :: o <= OBJECTS ->
          // else: the object is lost
          assert((place[o] == POOL || place[o] >= SLABS) == ((inside & (1 << o)) == 0));
          o++
       :: else -> break
       od;
       c = 0; i = 0; n = 0; o = 0; inside = 0 }
  od
}

#if WEAK
#define F(l) :: atomic { PENDING(c, l) -> FLUSH(c, l) }
proctype store_buffer(byte c) {
  do
  F(0) F(1)
  F(7) F(8) F(9) F(10) F(11)
  F(12) F(13) F(14) F(15) F(16)
  F(17) F(18) F(19) F(20) F(21)
  od
}
#endif

// ---- Locks, one per CPU --------------------------------------------------------------------------
bit lock[2];
#define Unlock(cpu, c) BARRIER(cpu); lock[c] = 0

// ---- User space: sections ------------------------------------------------------------------------
// One instruction of thread `me`. A doomed thread finds itself at the abort handler: it forgets its
// registers and goes on with any operation, the same one (a restart) included. (Forgetting is no
// memory access, so it may happen before the thread runs again: fewer states.)
#define STEP(...) \
  atomic { running(me) || doomed[me] -> \
    if \
    :: doomed[me] -> doomed[me] = 0; Forget(); goto next_operation \
    :: else \
    fi; \
    __VA_ARGS__ }

#define Forget() index = 0; slab = 0; current = 0; item = 0; item2 = 0; busy[me] = 0
#define Leave() in_section[me] = 0
#define GoTo(label) Leave(); goto label

#define Arm() in_section[me] = 1; printf("T%d cpu %d   arms\n", me, seat[me])
#define LoadIndex() \
  index = INDEX(me); \
  printf("T%d cpu %d   loads its index %d\n", me, seat[me], index)
#if STALE_INDEX
#define Begin() busy[me] = 1; LoadIndex()
#else
#define Begin() busy[me] = 1; Arm()
#endif

#define LoadCurrent() \
  current = LOAD(seat[me], CURRENT(slab)); \
  assert(current != UNINITIALISED); /* else: the slab was seen before its header */ \
  printf("T%d cpu %d   current of slab %d is %d\n", me, seat[me], slab, current)

#define LoadSlab() \
  slab = LOAD(seat[me], SLAB_OF(index)); \
  printf("T%d cpu %d   slab_of[%d] is slab %d\n", me, seat[me], index, slab); \
  index = 0

#if LEGACY
// Every section begins with Begin(), its first instruction, in proctype thread.
inline EnterSection() {
  STEP(slab = word[me];
       printf("T%d cpu %d   cached word is %d\n", me, seat[me], slab);
       if
       :: slab == INVALID || slab == MARKER -> slab = 0; GoTo(cache_slab)
       :: else
       fi)
}

// Marker first, then the pointer, stored only if the marker is still there.
inline CacheSlab() {
  STEP(Arm());
  STEP(word[me] = MARKER);
  STEP(LoadIndex());
  STEP(LoadSlab();
       if
       :: slab == CLOSED -> GoTo(slow_path)
       :: else
       fi);
  STEP(if
       :: word[me] != MARKER -> Leave(); Forget(); goto next_operation
       :: else
       fi);
  STEP(word[me] = slab; Leave();
       printf("T%d cpu %d   caches slab %d\n", me, seat[me], slab);
       Forget(); goto next_operation)
}
#else
inline EnterSection() {
#if STALE_INDEX
  STEP(Arm());
#else
  STEP(LoadIndex());
#endif
  STEP(LoadSlab())
}
#endif

#define CommitCurrent(n) \
  CheckCommit(me, slab); \
  STORE(seat[me], CURRENT(slab), n); \
  printf("T%d cpu %d   COMMITS current of slab %d = %d\n", me, seat[me], slab, n)

inline Pop() {
  EnterSection();
  STEP(LoadCurrent());
  STEP(item = LOAD(seat[me], SLOT(slab, current - 1));
       if
       :: item == MARK -> GoTo(slow_path)
       :: else
       fi);
  STEP(CommitCurrent(current - 1);
       printf("T%d cpu %d   has popped object %d\n", me, seat[me], item);
       Move(item, slab, HELD_BY(me));
       Poison(slab, current - 1);
       Leave(); Forget())
}

// `item` is the object that the caller frees.
inline Push() {
  EnterSection();
  STEP(LoadCurrent());
  STEP(if
       :: current == LOAD(seat[me], END(slab)) -> GoTo(slow_path)
       :: else
       fi);
#if TWO_COMMITS
  STEP(CommitCurrent(current + 1));
  STEP(STORE(seat[me], SLOT(slab, current), item);
       Move(item, HELD_BY(me), slab);
       Leave(); Forget())
#else
  STEP(STORE(seat[me], SLOT(slab, current), item);
       printf("T%d cpu %d   stores object %d to slot %d\n", me, seat[me], item, current));
  STEP(CommitCurrent(current + 1);
       Move(item, HELD_BY(me), slab);
       Leave(); Forget())
#endif
}

// Batches of two: copy, then one commit.
inline PopBatch() {
  EnterSection();
  STEP(LoadCurrent());
  STEP(item = LOAD(seat[me], SLOT(slab, current - 1));
       if
       :: item == MARK -> GoTo(slow_path)
       :: else
       fi);
  STEP(item2 = LOAD(seat[me], SLOT(slab, current - 2));
       if
       :: item2 == MARK -> GoTo(slow_path)
       :: else
       fi);
  STEP(CommitCurrent(current - 2);
       printf("T%d cpu %d   has popped objects %d and %d\n", me, seat[me], item, item2);
       Move(item, slab, HELD_BY(me));
       Move(item2, slab, HELD_BY(me));
       Poison(slab, current - 1); Poison(slab, current - 2);
       Leave(); Forget())
}

inline PushBatch() {
  EnterSection();
  STEP(LoadCurrent());
  STEP(if
       :: current + 2 > LOAD(seat[me], END(slab)) -> GoTo(slow_path)
       :: else
       fi);
  STEP(STORE(seat[me], SLOT(slab, current), item));
  STEP(STORE(seat[me], SLOT(slab, current + 1), item2));
  STEP(CommitCurrent(current + 2);
       Move(item, HELD_BY(me), slab);
       Move(item2, HELD_BY(me), slab);
       Leave(); Forget())
}

// ---- User space: slow path -----------------------------------------------------------------------
inline InitialiseSlab(core, s, n) {
  STORE(core, SLOT(s, 0), MARK);
  STORE(core, END(s), CAPACITY + 1);
  STORE(core, CURRENT(s), n)
}

inline Publish(core, c, s) {
  RELEASE(core);
  STORE(core, SLAB_OF(c), s);
  printf("          slab_of[%d] = slab %d published\n", c, s)
}

// The slow path of a thread whose CPU's entry is closed.
inline FirstUse() {
#if UNLOCKED_FIRST_USE
  STEP(skip);
#else
  atomic { running(me) && !lock[index] -> lock[index] = 1 };
#endif
  STEP(if
       :: LOAD(seat[me], SLAB_OF(index)) != CLOSED || slab_for[index] != CLOSED ->
          goto first_use_done
       :: else -> slab = 1 + index
       fi);
  STEP(InitialiseSlab(seat[me], slab, 1);
       printf("T%d cpu %d   makes slab %d\n", me, seat[me], slab));
  STEP(slab_for[index] = slab; Publish(seat[me], index, slab));
first_use_done:
#if UNLOCKED_FIRST_USE
  STEP(Forget())
#else
  STEP(Unlock(seat[me], index); Forget())
#endif
}

#if OBJECTS == 3
#define OBJECT_EACH(x) x(1) x(2) x(3)
#else
#define OBJECT_EACH(x) x(1) x(2)
#endif
#define TAKE_OR_GIVE(o) \
  :: place[o] == POOL -> place[o] = HELD_BY(me) \
  :: place[o] == HELD_BY(me) -> place[o] = POOL
#define PUSH_OBJECT(o) \
  :: atomic { running(me) && place[o] == HELD_BY(me) -> item = o; Begin() }
#define PUSH_OBJECTS(o, p) \
  :: atomic { running(me) && place[o] == HELD_BY(me) && place[p] == HELD_BY(me) -> \
       item = o; item2 = p; Begin() }

// A miss on an open slab: the central list takes or gives one object.
inline SlowPath() {
  STEP(index = INDEX(me); slab = 0; current = 0; item = 0; item2 = 0;
       if
       :: LOAD(seat[me], SLAB_OF(index)) == CLOSED -> goto first_use
       :: else
       fi;
       if
       OBJECT_EACH(TAKE_OR_GIVE)
       :: skip
       fi;
       Forget())
}

proctype thread(byte me) {
  byte index, slab, current, item, item2;
#if WEAK
  byte l;
#endif
next_operation:
  if
#if BATCH != 2
  :: atomic { running(me) -> Begin() }; Pop()
  :: if
     OBJECT_EACH(PUSH_OBJECT)
     fi;
     Push()
#endif
#if BATCH
  :: atomic { running(me) -> Begin() }; PopBatch()
  :: if
     PUSH_OBJECTS(1, 2)
     PUSH_OBJECTS(2, 1)
     fi;
     PushBatch()
#endif
  fi;
  goto next_operation;
#if LEGACY
cache_slab:
  CacheSlab();
#endif
slow_path:
  SlowPath();
  goto next_operation;
first_use:
  FirstUse();
  goto next_operation
}

// ---- The stopper: Stop, then Drain or Swap, then Start -------------------------------------------
// membarrier on CPU c: interrupts it, which aborts (and rewrites for) the thread that runs there; a
// full barrier on both sides.
inline Fence(c) {
  if
  :: seat[0] == c -> ReturnToUser(0, INDEX(0), ABORT_FENCE, REWRITE)
  :: seat[1] == c -> ReturnToUser(1, INDEX(1), ABORT_FENCE, REWRITE)
  :: else
  fi;
#if !TARGET_NO_BARRIER
  BARRIER(c);
#endif
#if !CALLER_NO_BARRIER
  BARRIER(STOPPER_CPU);
#endif
  printf("stopper   fences cpu %d; aborted: T0=%d T1=%d\n", c, doomed[0], doomed[1])
}

// With mm_cid as index all CPUs are fenced: one interrupt after the other.
inline FenceFor(c) {
#if CID && !FENCE_ONE_CPU
  atomic { Fence(0) };
  atomic { Fence(1) }
#else
  atomic { Fence(c) }
#endif
}

inline CloseEntry(c) {
  atomic { STORE(STOPPER_CPU, SLAB_OF(c), CLOSED); printf("stopper   slab_of[%d] = closed\n", c) }
}

inline Stop(c) {
#if NO_FENCE
  CloseEntry(c);
#elif FENCE_BEFORE_CLOSE
  FenceFor(c);
  CloseEntry(c);
#else
  CloseEntry(c);
  FenceFor(c);
#endif
  owned = slab
}

inline Drain(s) {
  atomic { count = LOAD(STOPPER_CPU, CURRENT(s)); i = 1;
           printf("stopper   drains slab %d, current %d\n", s, count) };
  do
  :: atomic { i < count ->
       item = LOAD(STOPPER_CPU, SLOT(s, i));
       printf("stopper   takes object %d from slot %d\n", item, i);
       Move(item, s, POOL);
       Poison(s, i);
       item = 0;
       i++ }
  :: atomic { i >= count -> STORE(STOPPER_CPU, CURRENT(s), 1); i = 0; count = 0; break }
  od
}

// The spare becomes the CPU's slab; the old one's memory is lost to whoever still reads it.
inline Swap(c, s) {
  atomic { count = LOAD(STOPPER_CPU, CURRENT(s)); i = 1 };
  do
  :: atomic { i < count ->
       item = LOAD(STOPPER_CPU, SLOT(s, i));
       Move(item, s, spare);
       STORE(STOPPER_CPU, SLOT(spare, i), item);
       item = 0;
       i++ }
  :: atomic { i >= count -> break }
  od;
  atomic { InitialiseSlab(STOPPER_CPU, spare, count) };
  atomic {
    printf("stopper   swaps slab %d for slab %d\n", s, spare);
    BARRIER(STOPPER_CPU);
    slab_for[c] = spare; spare = s; s = slab_for[c];
    mem[CURRENT(spare)] = UNINITIALISED; mem[END(spare)] = 0;
    mem[SLOT(spare, 0)] = JUNK; mem[SLOT(spare, 1)] = JUNK; mem[SLOT(spare, 2)] = JUNK;
    i = 0; count = 0 }
}

inline Start(c, s) {
  atomic { owned = 0; Publish(STOPPER_CPU, c, s) }
}

#if REMOTE_WRITE
// What is forbidden: a pop by plain loads and stores on a slab that is not stopped.
inline StopDrainStart(c) {
  if
  :: atomic { count = LOAD(STOPPER_CPU, CURRENT(slab));
       if
       :: count > 1 -> item = LOAD(STOPPER_CPU, SLOT(slab, count - 1))
       :: else -> goto unlock
       fi }
  fi;
  atomic { STORE(STOPPER_CPU, CURRENT(slab), count - 1);
    printf("stopper   writes current of slab %d = %d remotely\n", slab, count - 1);
    Move(item, slab, POOL) }
}
#else
inline StopDrainStart(c) {
  Stop(c);
#if EARLY_PUBLISH
  Start(c, slab);
  Drain(slab)
#else
  if
  :: Drain(slab)
#if SWAP
  :: Swap(c, slab)
#endif
  fi;
  Start(c, slab)
#endif
}
#endif

proctype stopper() {
  byte cpu, slab, count, i, item;
#if WEAK
  byte l;
#endif
  do
  :: atomic {
#if STOP_BOTH
       if
       :: !lock[0] -> cpu = 0
       :: !lock[1] -> cpu = 1
       fi;
#else
       !lock[0] ->
#endif
       lock[cpu] = 1; busy[THREADS] = 1; slab = slab_for[cpu];
       if
       :: slab == CLOSED -> goto unlock
       :: else
       fi };
     StopDrainStart(cpu);
unlock:
     atomic { Unlock(STOPPER_CPU, cpu);
       busy[THREADS] = 0; cpu = 0; slab = 0; count = 0; i = 0; item = 0 }
  od
}

init {
  byte l;
  atomic {
    mem[CURRENT(CLOSED)] = 1; mem[END(CLOSED)] = 1; mem[SLOT(CLOSED, 0)] = MARK;
    l = 0;
    do
    :: l < SLABS ->
       if
       :: l != CLOSED -> mem[SLOT(l, 0)] = JUNK
       :: else
       fi;
       mem[SLOT(l, 1)] = JUNK; mem[SLOT(l, 2)] = JUNK; l++
    :: else -> break
    od;
#if WEAK
    l = 0;
    do
    :: l < 3 * LOCATIONS -> buffer[l] = NOTHING; l++
    :: else -> break
    od;
#endif
    l = 0;
    seat[0] = 0; seat[1] = 1;
#if !FIRST_USE && !UNLOCKED_FIRST_USE
    InitialiseSlab(0, 1, 1); BARRIER(0); mem[SLAB_OF(0)] = 1; slab_for[0] = 1;
    InitialiseSlab(0, 2, 1); BARRIER(0); mem[SLAB_OF(1)] = 2; slab_for[1] = 2;
#endif
#if CID
    cid[0] = 0; cid[1] = 1;
#endif
    run thread(0); run thread(1); run kernel(0); run kernel(1); run stopper(); run quiescence();
#if WEAK
    run store_buffer(0); run store_buffer(1); run store_buffer(2);
#endif
  }
}
