// SPDX-License-Identifier: Apache-2.0
#include "allocator/release/own_machine.h"

#include <stdlib.h>
#include <string.h>

#include <filesystem>
#include <fstream>
#include <vector>

#include "allocator/central/transfer_cache.h"
#include "allocator/config/config.h"
#include "allocator/front/front.h"
#include "allocator/pages/page_heap.h"
#include "allocator/release/limits.h"
#include "allocator/sizes/size_classes.h"
#include "percpu/slabs.h"
#include "rseq/rseq.h"

namespace pcmalloc::release {
namespace {

std::string* root;

}  // namespace

uint64_t now_ms = 1'000'000'000;

std::string Real(const std::string& path) { return *root + path; }

void Write(const std::string& path, const std::string& content) {
  std::filesystem::create_directories(std::filesystem::path(Real(path)).parent_path());
  std::ofstream(Real(path)) << content;
}

void SetPressure(const char* percent) {
  Write("/proc/pressure/memory", std::string("some avg10=") + percent + " avg60=0.00\n");
}

void OwnMachine::SetUp() {
  SetPressure("0.00");
  front::Trim();
  PageHeap::Release(SIZE_MAX);
  now_ms += 1'000'000;
}

void OwnMachine::Burst(size_t bytes) {
  std::vector<void*> blocks;
  for (size_t taken = 0; taken < bytes; taken += ClassSize(kClass)) {
    blocks.push_back(front::Allocate(kClass));
    memset(blocks.back(), 1, ClassSize(kClass));
  }
  for (void* p : blocks) front::Deallocate(kClass, p);
}

bool OwnMachine::SlabHolds() { return percpu::HeldBy(percpu::CurrentIndex(), kClass) != 0; }

uint64_t OwnMachine::InTransfer() { return central::ClassStats(kClass).transfer_objects; }

}  // namespace pcmalloc::release

int main(int argc, char** argv) {
  ::testing::InitGoogleTest(&argc, argv);
  std::string name = ::testing::TempDir() + "/machine.XXXXXX";
  if (mkdtemp(name.data()) == nullptr) return 2;
  pcmalloc::release::root = &name;
  pcmalloc::release::SetFilesRoot(name.c_str());
  pcmalloc::ParseConfig("decay:8s");
  const pcmalloc::rseq::Discovery& found = pcmalloc::rseq::Discover();
  const bool sections = found.owner != pcmalloc::rseq::Owner::kNone && found.fence_available;
  pcmalloc::percpu::InitTable(found.cpu_bound);
  pcmalloc::percpu::Init(
      sections ? pcmalloc::percpu::Mode::kCpuId : pcmalloc::percpu::Mode::kLocked,
      pcmalloc::front::MakeGeometry());
  pcmalloc::release::ConfigureLimits();
  const int result = RUN_ALL_TESTS();
  std::filesystem::remove_all(name);
  return result;
}
