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
//   TWO_COMMITS RELAXED_PUBLISH CALLER_NO_BARRIER TARGET_NO_BARRIER FENCE_ONE_CPU
//   UNLOCKED_FIRST_USE NO_SWITCH_BARRIER

#include "kernel.pml"

// ---- User space: sections -----------------------------------------------------------------------
// One instruction of thread `me`. A doomed thread finds itself at the abort handler: it forgets its
// registers and goes on with any operation, the same one (a restart) included. Forgetting is no
// memory access, so when it happens does not matter; to have fewer states everybody waits for it
// (`provided`), and it needs no CPU.
#define STEP(...) \
  atomic { running(me) || doomed[me] -> \
    if \
    :: doomed[me] -> \
         printf("T%d         is aborted\n", me); \
         Forget(); doomed[me] = 0; goto next_operation \
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
       Poison(seat[me], slab, current - 1);
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
       Poison(seat[me], slab, current - 1); Poison(seat[me], slab, current - 2);
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

// ---- User space: slow path ----------------------------------------------------------------------
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
  :: place[o] == POOL -> place[o] = HELD_BY(me); \
       printf("T%d cpu %d   takes object %d from the pool\n", me, seat[me], o) \
  :: place[o] == HELD_BY(me) -> place[o] = POOL; \
       printf("T%d cpu %d   gives object %d to the pool\n", me, seat[me], o)
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

proctype thread(byte me) provided (!doomed[1 - me]) {
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

// ---- The stopper: Stop, then Drain or Swap, then Start ------------------------------------------
// membarrier on CPU c: interrupts it, which aborts (and rewrites for) the thread that runs there; a
// full barrier on both sides.
inline Fence(c) {
#if !CALLER_NO_BARRIER
  BARRIER(STOPPER_CPU);
#endif
#if !TARGET_NO_BARRIER
  BARRIER(c);
#endif
  printf("stopper   fences cpu %d\n", c);
  if
  :: seat[0] == c -> ReturnToUser(0, INDEX(0), ABORT_FENCE, REWRITE)
  :: seat[1] == c -> ReturnToUser(1, INDEX(1), ABORT_FENCE, REWRITE)
  :: else
  fi
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
       Poison(STOPPER_CPU, s, i);
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

proctype stopper() provided (settled) {
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
