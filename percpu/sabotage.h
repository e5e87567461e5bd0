// SPDX-License-Identifier: Apache-2.0
//
// Purpose: deliberate faults in the protocol, one a build, for //tests/sabotage: a stress test that
//   does not notice them proves nothing. The shipped library is built without any.
// Invariants: without a PCMALLOC_SABOTAGE_ macro every constant is false and no code differs.
// Cost: none.
#ifndef PCMALLOC_PERCPU_SABOTAGE_H_
#define PCMALLOC_PERCPU_SABOTAGE_H_

namespace pcmalloc::percpu {

#ifdef PCMALLOC_SABOTAGE_NO_FENCE  // Stop does not wait for running sections
inline constexpr bool kSabotageNoFence = true;
#else
inline constexpr bool kSabotageNoFence = false;
#endif

#ifdef PCMALLOC_SABOTAGE_EARLY_PUBLISH  // Stop opens the table again before the fence
inline constexpr bool kSabotageEarlyPublish = true;
#else
inline constexpr bool kSabotageEarlyPublish = false;
#endif

#ifdef PCMALLOC_SABOTAGE_REMOTE_WRITE  // a slab is changed from outside without being stopped
inline constexpr bool kSabotageRemoteWrite = true;
#else
inline constexpr bool kSabotageRemoteWrite = false;
#endif

#ifdef PCMALLOC_SABOTAGE_LEGACY_FORCED  // the cached pointer outlives the kernel's rewriting
inline constexpr bool kSabotageLegacyForced = true;
#else
inline constexpr bool kSabotageLegacyForced = false;
#endif

#ifdef PCMALLOC_SABOTAGE_LEGACY_UNPROVED  // no proof that the kernel rewrites is asked for
inline constexpr bool kSabotageLegacyUnproved = true;
#else
inline constexpr bool kSabotageLegacyUnproved = false;
#endif

#ifdef PCMALLOC_SABOTAGE_EARLY_HEADER  // an owner's header counts items that are not there yet
inline constexpr bool kSabotageEarlyHeader = true;
#else
inline constexpr bool kSabotageEarlyHeader = false;
#endif

#ifdef PCMALLOC_SABOTAGE_TORN_HEADER  // an owner writes a header by two stores
inline constexpr bool kSabotageTornHeader = true;
#else
inline constexpr bool kSabotageTornHeader = false;
#endif

// PCMALLOC_SABOTAGE_STALE_INDEX and PCMALLOC_SABOTAGE_TWO_COMMITS change instructions; they are
// asked for in ops_x86_64.h, the latter in ops_aarch64.h too.

}  // namespace pcmalloc::percpu

#endif  // PCMALLOC_PERCPU_SABOTAGE_H_
