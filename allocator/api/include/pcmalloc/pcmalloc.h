/* SPDX-License-Identifier: Apache-2.0
 *
 * pcmalloc: what it offers beyond malloc's own names. C11 and C++.
 *
 * Purpose: ask how the allocator works in this process, read its statistics, empty its caches.
 * Invariants: every function may be called from any thread; none sets errno. "Signal-safe" is said
 *   where it holds. Strings returned live as long as the process.
 * Cost: said at each function.
 */
#ifndef PCMALLOC_PCMALLOC_H_
#define PCMALLOC_PCMALLOC_H_

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* The version of this header. Whatever else names a version follows it: the library's name, its
 * pkg-config file, its CMake package. */
#define PCMALLOC_VERSION_MAJOR 0
#define PCMALLOC_VERSION_MINOR 1
#define PCMALLOC_VERSION_PATCH 0
#define PCMALLOC_VERSION "0.1.0"

/* How small blocks are served in this process: "v2safe-cpu", "v2safe-cid", "legacy" or "locked";
 * "starting" if asked while the first call is still finding that out, as by a signal handler that
 * interrupted it. Signal-safe. */
const char* pcmalloc_mode(void);

/* Why that mode, in words. Signal-safe. */
const char* pcmalloc_reason(void);

/* The PCMALLOC_VERSION of the library in use, which may be newer than the header's. Signal-safe. */
const char* pcmalloc_version(void);

/* Statistics as one JSON object; its keys are explained in allocator/observe/README.md. Writes at
 * most `size` bytes, NUL included (a text that does not fit is cut); returns the number of bytes
 * the whole text needs, NUL included. `buffer` may be null if `size` is 0. Tens of microseconds. */
int pcmalloc_stats_json(char* buffer, size_t size);

/* One past the highest CPU number (or mm_cid) that the kernel can report. Signal-safe. */
int pcmalloc_cpu_bound(void);

/* Empties the cache of one CPU into the shared layers; other CPUs are not disturbed. The number of
 * blocks that it held, 0 also for a CPU never used. Microseconds: a membarrier and the copying. */
size_t pcmalloc_drain_cpu(int cpu);

/* Moves the cache of one CPU to another piece of memory, contents kept. 0, or -1 if the CPU was
 * never used or could not be stopped. */
int pcmalloc_resize_cpu(int cpu);

/* Keeps one CPU's cache closed until pcmalloc_start_cpu is called by the same thread: allocation
 * there goes on from the shared layers. 0, or -1 as above. At most one CPU a thread at a time. */
int pcmalloc_stop_cpu(int cpu);
int pcmalloc_start_cpu(int cpu);

/* How much memory the allocator may have, in bytes; SIZE_MAX for no limit. What counts is what
 * pcmalloc_footprint returns. Above the soft limit free memory goes back to the kernel at once and
 * caches shrink; a request that would pass the hard one fails with ENOMEM after everything idle has
 * been given back. A limit below what is in use takes nothing away from anybody. Setters give back
 * what is necessary before they return: microseconds to milliseconds. */
size_t pcmalloc_soft_limit(void);
void pcmalloc_set_soft_limit(size_t bytes);
size_t pcmalloc_hard_limit(void);
void pcmalloc_set_hard_limit(size_t bytes);

/* Bytes of memory that the allocator has now: blocks, free ones that are still backed by memory (in
 * caches or as pages), and its own books. Signal-safe. */
size_t pcmalloc_footprint(void);

/* How many bytes of free blocks one CPU's cache may hold: the limit in force, which is smaller than
 * the one that was set where a limit on memory or pressure demands it. Of N CPUs in use, if more
 * than two, each may hold 2/N of it, but at least 3/8. The setter takes 64 KiB to 1 GiB, and the
 * nearest of these for anything else. */
size_t pcmalloc_percpu_cache(void);
void pcmalloc_set_percpu_cache(size_t bytes);

/* The background thread: "running", "watching" (started when it is needed), or "off: " and why.
 * Signal-safe. */
const char* pcmalloc_background_thread(void);

/* How many critical sections the kernel has aborted in this process so far. Signal-safe. */
uint64_t pcmalloc_aborts(void);

#ifdef __cplusplus
}
#endif

#endif /* PCMALLOC_PCMALLOC_H_ */
