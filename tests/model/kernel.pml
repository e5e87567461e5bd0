// SPDX-License-Identifier: Apache-2.0
//
// What the protocol runs on: memory and its store buffers, the kernel's scheduler, and the state
// that the properties are stated over. Included by slab.pml, which explains the parameters.

// ---- Memory: slab_of[cpu], then per slab: current, end, slot[0 .. CAPACITY] ---------------------
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

// ---- What the properties are stated over (no real counterpart) ----------------------------------
// place[o] is where object o is: the pool (central list), a slab, or in a thread's hands.
#define POOL 0
#define HELD_BY(t) (SLABS + (t))
byte place[OBJECTS + 1];  // objects are 1 .. OBJECTS
byte slab_for[2];         // the slab made for a CPU, 0 while none; under that CPU's lock
byte spare = 3;
byte owned;               // the slab that the stopper owns with plain loads and stores
bool busy[THREADS + 1];   // inside an operation
bit lock[2];              // one per CPU

#define Move(o, from, to) \
  assert(o >= 1 && o <= OBJECTS); /* else: no object at all, an empty or foreign slot */ \
  assert(place[o] == from);       /* else: double allocation */ \
  place[o] = to

// A slot at or above `current` is dead. It is poisoned where possible: whoever acts on it is caught
// at once, and stale contents do not multiply the states. (Uncommitted stores are in dead
// slots too; they die with the section's abort, when no other section can be under way there.)
#define POISON (!TARGET_NO_BARRIER && !NO_SWITCH_BARRIER && RESUMPTIONS_ALIKE && ABORT_PREEMPT && ABORT_FENCE)
#if POISON
#if WEAK
#define Poison(c, s, i) buffer[(c) * LOCATIONS + SLOT(s, i)] = NOTHING; mem[SLOT(s, i)] = JUNK
#else
#define Poison(c, s, i) mem[SLOT(s, i)] = JUNK
#endif
#define PoisonDead(index) \
  if \
  :: mem[CURRENT(slab_for[index])] == 1 -> \
     mem[SLOT(slab_for[index], 1)] = JUNK; mem[SLOT(slab_for[index], 2)] = JUNK \
  :: mem[CURRENT(slab_for[index])] == 2 -> mem[SLOT(slab_for[index], 2)] = JUNK \
  :: else \
  fi
#else
#define Poison(c, s, i) skip
#define PoisonDead(index) skip
#endif

#if NO_SWITCH_BARRIER
#define SWITCH_BARRIER(c) skip
#else
#define SWITCH_BARRIER(c) BARRIER(c)
#endif

// ---- Kernel -------------------------------------------------------------------------------------
#define OFF 2            // seat[t] = cpu: running there; cpu + OFF: preempted, last ran there
byte seat[THREADS];
bit in_section[THREADS]; // rseq_cs is armed and the instruction pointer is inside
bit doomed[THREADS];     // the kernel moved the instruction pointer to the abort handler
#define settled (!doomed[0] && !doomed[1])
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
  :: in_section[t] -> in_section[t] = 0; PoisonDead(index); doomed[t] = 1 \
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
  index = INDEX(t);
  seat[t] = OFF;
  ReturnToUser(t, index, ABORT_PREEMPT, 1)
}

inline Resume(t, c) {
  seat[t] = c;
  printf("kernel    T%d resumes on cpu %d\n", t, c)
}
#else
inline Preempt(t) {
  seat[t] = seat[t] + OFF
}

inline Resume(t, c) {
  last = seat[t] - OFF;
  seat[t] = c;
  printf("kernel    T%d resumes on cpu %d, was on %d\n", t, c, last);
  if
  :: last == c -> last = 0; ReturnToUser(t, c, ABORT_PREEMPT, REWRITE)
  :: else -> last = 0; ReturnToUser(t, c, ABORT_MIGRATE, 1)
  fi
}
#endif

proctype kernel(byte t) provided (settled) {
  byte l, index, last;
  do
  :: atomic { running(t) ->
       printf("kernel    preempts T%d on cpu %d\n", t, seat[t]);
       SWITCH_BARRIER(seat[t]);
       Preempt(t); index = 0 }
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

// What is in a slab of index c while nobody works on it. By cpu_id its last stores may wait in that
// CPU's buffer, by mm_cid in the buffer of the CPU where the index was last in use.
#if CID && WEAK
#define SEEN(c, l) (PENDING(0, l) -> buffer[l] : LOAD(1, l))
#else
#define SEEN(c, l) LOAD(c, l)
#endif

// Conservation: with nobody inside an operation every object is in exactly the place it should be.
proctype quiescence() provided (settled) {
  byte c, i, n, o, inside;
  do
  :: d_step { !busy[0] && !busy[1] && !busy[THREADS] ->
       inside = 0;
       c = 0;
       do
       :: c < 2 && slab_for[c] != CLOSED ->
          n = SEEN(c, CURRENT(slab_for[c]));
          i = 1;
          do
          :: i < n ->
             o = SEEN(c, SLOT(slab_for[c], i));
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
// Only who holds a lock looks at what another CPU has stored, so only then does the time matter.
#if NO_SWITCH_BARRIER && CID
#define others_look true
#else
#define others_look (lock[0] || lock[1])
#endif
#define F(l) :: atomic { others_look && PENDING(c, l) -> FLUSH(c, l) }
proctype store_buffer(byte c) provided (settled) {
  do
  F(0) F(1)
  F(7) F(8) F(9) F(10) F(11)
  F(12) F(13) F(14) F(15) F(16)
  F(17) F(18) F(19) F(20) F(21)
  od
}
#endif

#define Unlock(cpu, c) BARRIER(cpu); lock[c] = 0
