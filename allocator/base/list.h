// SPDX-License-Identifier: Apache-2.0
//
// Purpose: a list linked through the `prev` and `next` of its elements.
//
//      first --> [ next ]--> [ next ]--> null         prev of the first element is null
//                [      ]<--[ prev ]
//
// Invariants: an element is in one list at most; whoever removes it names the list that it is in.
// Cost: a few instructions; nothing is allocated.
#ifndef PCMALLOC_ALLOCATOR_BASE_LIST_H_
#define PCMALLOC_ALLOCATOR_BASE_LIST_H_

namespace pcmalloc {

template <typename T>
struct List {
  T* first = nullptr;

  // In front.
  void Insert(T* element) {
    element->prev = nullptr;
    element->next = first;
    if (first != nullptr) first->prev = element;
    first = element;
  }

  void Remove(T* element) {
    if (element->prev != nullptr) {
      element->prev->next = element->next;
    } else {
      first = element->next;
    }
    if (element->next != nullptr) element->next->prev = element->prev;
  }
};

}  // namespace pcmalloc

#endif  // PCMALLOC_ALLOCATOR_BASE_LIST_H_
