// SPDX-License-Identifier: Apache-2.0
//
// From the first allocation before main() to the last after exit(), with everything that comes and
// goes in between.
#include <dlfcn.h>
#include <fcntl.h>
#include <link.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <filesystem>
#include <fstream>
#include <string>
#include <thread>
#include <vector>

#include "gtest/gtest.h"
#include "tests/support/allocator.h"
#include "tests/support/process.h"

namespace pcmalloc::testing {
namespace {

namespace fs = std::filesystem;

// The companions of this test lie beside it.
std::string Beside(const std::string& name) {
  return (fs::read_symlink("/proc/self/exe").parent_path() / name).string();
}

class Startup : public ::testing::TestWithParam<const char*> {};

TEST_P(Startup, Allocates) {
  FreshProcess options;
  std::string kind = GetParam();
  options.executable = Beside(kind + (Variant() == "linked" ? "_with_pcmalloc" : "_plain"));
  ASSERT_TRUE(fs::exists(options.executable)) << options.executable;
  for (const char* now : {"", "LD_BIND_NOW=1"}) {
    options.environment = {now};
    EXPECT_TRUE(InFreshProcess(kind, options)) << now;
  }
}

INSTANTIATE_TEST_SUITE_P(In, Startup, ::testing::Values("ifunc", "ifunc_local", "constructors"),
                         [](const auto& info) { return info.param; });

// Those programs look after themselves, and end with status 0 where all is well.
class Replacement : public ::testing::TestWithParam<const char*> {};

TEST_P(Replacement, IsWhatEverythingComesTo) {
  FreshProcess options;
  options.executable = Beside(GetParam());
  ASSERT_TRUE(fs::exists(options.executable)) << options.executable;
  EXPECT_TRUE(InFreshProcess(GetParam(), options));
}

INSTANTIATE_TEST_SUITE_P(Of, Replacement,
                         ::testing::Values("replaces_operators", "replaces_malloc"),
                         [](const auto& info) { return info.param; });

TEST(ThreadWrapper, DoesNotMeetItself) {
  FreshProcess options;
  options.executable = Beside("wraps_threads");
  ASSERT_TRUE(fs::exists(options.executable)) << options.executable;
  EXPECT_TRUE(InFreshProcess("wraps_threads", options));
}

void AllocateAndFree(uint64_t seed, int count) {
  Random random(seed);
  std::vector<std::pair<void*, size_t>> blocks;
  for (int i = 0; i < count; ++i) {
    size_t size = random.Size(13);
    blocks.emplace_back(malloc(size), size);
    Fill(blocks.back().first, size, seed);
  }
  for (auto [p, size] : blocks) {
    EXPECT_TRUE(Holds(p, size, seed));
    free(p);
  }
}

TEST(Threads, ComeAndGoAndLeaveNothing) {
  const int batch = 10;
  const int total = Variant() == "valgrind" ? 500 : 10000;
  size_t settled = 0;
  for (int i = 0; i < total; i += batch) {
    std::vector<std::thread> threads;
    for (int k = 0; k < batch; ++k) {
      threads.emplace_back([i, k] { AllocateAndFree(static_cast<uint64_t>(i + k), 50); });
    }
    for (std::thread& thread : threads) thread.join();
    if (i == total / 5) settled = Measure().resident;
  }
  // valgrind's translated code and stacks count as the process's, and go on to grow.
  const size_t margin = Variant() == "valgrind" ? 16 << 20 : 4 << 20;
  EXPECT_LT(Measure().resident, settled + margin);
}

// What is left to do after main(): each stage allocates and frees what an earlier one allocated.
std::atomic<int> stages{0};
bool check_stages = false;
void* volatile handed_on = nullptr;

void Stage() {
  if (!check_stages) return;
  free(handed_on);
  handed_on = malloc(10000);
  if (handed_on == nullptr) return;
  memset(handed_on, 1, 10000);
  AllocateAndFree(static_cast<uint64_t>(stages), 100);
  stages.fetch_add(1);
}

struct AtDestruction {
  ~AtDestruction() { Stage(); }
};
AtDestruction static_object;
thread_local AtDestruction thread_object;
pthread_key_t key;

// As often as POSIX allows: a destructor that sets its key again is called again.
void KeyDestructor(void* value) {
  Stage();
  auto left = reinterpret_cast<intptr_t>(value);
  if (left > 1) pthread_setspecific(key, reinterpret_cast<void*>(left - 1));
}

constexpr int kStages = 1 /* thread_local */ + 3 /* key */ + 1 /* main's thread_local */ +
                        2 /* atexit */ + 1 /* static */ + 1 /* last */;

__attribute__((destructor(101))) void LastOfAll() {
  if (!check_stages) return;
  Stage();
  // Not stdio, which is over.
  _exit(stages == kStages ? 0 : 1);
}

PCM_SCENARIO(ToTheLast) {
  check_stages = true;
  ASSERT_EQ(pthread_key_create(&key, &KeyDestructor), 0);
  std::thread([] {
    (void)*reinterpret_cast<volatile char*>(&thread_object);
    pthread_setspecific(key, reinterpret_cast<void*>(3));
  }).join();
  EXPECT_EQ(stages, 4);
  (void)*reinterpret_cast<volatile char*>(&thread_object);
  atexit([] {
    Stage();
    atexit(&Stage);  // registered while handlers run
  });
  static std::thread still_running([] {
    while (true) free(Escape(malloc(100)));
  });
  still_running.detach();
}

TEST(Exit, StillAllocates) { EXPECT_TRUE(InFreshProcess("ToTheLast")); }

TEST(Exit, OfAThreadKeepsItsBlocks) {
  void* block = nullptr;
  for (int i = 0; i < 200; ++i) {
    std::thread([&block, i] {
      EXPECT_TRUE(block == nullptr || Holds(block, 3000, static_cast<uint64_t>(i - 1)));
      block = realloc(block, 3000);
      Fill(block, 3000, static_cast<uint64_t>(i));
    }).join();
  }
  free(block);
}

TEST(Dlopen, AndDlcloseOfALibraryThatAllocates) {
  std::vector<char*> blocks;
  std::atomic<bool> stop{false};
  std::thread other([&stop] {
    while (!stop) AllocateAndFree(3, 100);
  });
  for (int i = 0; i < 200; ++i) {
    void* plugin = dlopen(Beside("libplugin.so").c_str(), RTLD_NOW | RTLD_LOCAL);
    ASSERT_NE(plugin, nullptr) << dlerror();
    auto* take = reinterpret_cast<char* (*)(size_t)>(dlsym(plugin, "PluginBlock"));
    ASSERT_NE(take, nullptr);
    std::thread([&] { blocks.push_back(take(static_cast<size_t>(i) * 10)); }).join();
    ASSERT_EQ(dlclose(plugin), 0);
  }
  stop = true;
  other.join();
  for (size_t i = 0; i < blocks.size(); ++i) {
    EXPECT_EQ(strlen(blocks[i]), i * 10);
    free(blocks[i]);
  }
}

// A library bound to its own dependencies first would find libc's malloc there, and not what is
// preloaded. In a program that is linked with pcmalloc it does: see docs/limits.md.
TEST(DeepBinding, KeepsOneMalloc) {
  void* plugin = dlopen(Beside("libplugin.so").c_str(), RTLD_NOW | RTLD_LOCAL | RTLD_DEEPBIND);
  ASSERT_NE(plugin, nullptr) << dlerror();
  auto* take = reinterpret_cast<void* (*)(size_t)>(dlsym(plugin, "PluginMalloc"));
  auto* give = reinterpret_cast<void (*)(void*)>(dlsym(plugin, "PluginFree"));
  ASSERT_NE(take, nullptr);
  ASSERT_NE(give, nullptr);
  for (size_t size : {1, 100, 5000, 100000, 3000000}) {
    void* ours = Escape(malloc(size));
    Fill(ours, size, 1);
    give(ours);
    give(strndup(std::string(size, 'x').c_str(), size));
    void* its = take(size);
    Fill(its, size, 2);
    its = realloc(its, size + 100);
    EXPECT_TRUE(Holds(its, size, 2));
    free(its);
  }
  EXPECT_EQ(dlclose(plugin), 0);
}

// libc looks at the caller's return address to tell in whose RUNPATH to search.
TEST(Dlopen, SearchesWhereItsCallerSays) {
  void* opener = dlopen(Beside("libopener.so").c_str(), RTLD_NOW | RTLD_LOCAL);
  ASSERT_NE(opener, nullptr) << dlerror();
  auto* open_library = reinterpret_cast<void* (*)(const char*)>(dlsym(opener, "OpenLibrary"));
  ASSERT_NE(open_library, nullptr);
  EXPECT_EQ(dlopen("libplugin.so", RTLD_NOW), nullptr) << "found without a RUNPATH";
  for (int i = 0; i < 2; ++i) {
    void* plugin = open_library("libplugin.so");
    ASSERT_NE(plugin, nullptr) << dlerror();
    EXPECT_EQ(dlclose(plugin), 0);
  }
  EXPECT_EQ(dlclose(opener), 0);
}

TEST(Dlopen, SaysWhatIsWrong) {
  EXPECT_EQ(dlopen("/no/such/library.so", RTLD_NOW | RTLD_DEEPBIND), nullptr);
  const char* error = dlerror();
  ASSERT_NE(error, nullptr);
  EXPECT_NE(strstr(error, "/no/such/library.so"), nullptr) << error;
}

PCM_SCENARIO(NoDescriptors) {
  AllocateAndFree(1, 5000);
  std::thread([] { AllocateAndFree(2, 5000); }).join();
  // What would have been said on stderr must not end in a file that happens to get its number.
  int file = open("/dev/null", O_RDWR);
  if (file >= 0) close(file);
}

TEST(Descriptors, MayAllBeClosed) {
  const char* conf = getenv("PCMALLOC_CONF");
  FreshProcess options;
  options.environment = {std::string("PCMALLOC_CONF=") + (conf == nullptr ? "" : conf) +
                         (conf == nullptr ? "" : ",") + "stats_print:true"};
  options.before_exec = [] {
    for (int descriptor = 0; descriptor < 256; ++descriptor) close(descriptor);
  };
  EXPECT_TRUE(InFreshProcess("NoDescriptors", options));
}

PCM_SCENARIO(BareRoot) {
  EXPECT_NE(access("/proc/self", F_OK), 0);
  EXPECT_NE(access("/sys/devices", F_OK), 0);
  std::thread([] { AllocateAndFree(1, 20000); }).join();
  AllocateAndFree(2, 20000);
  void* large = calloc(64 << 20, 1);
  EXPECT_NE(large, nullptr);
  free(large);
  malloc_trim(0);
}

// Copies this program and every library it has loaded to the same places below `root`.
void CopyInto(const fs::path& root) {
  fs::copy_file(fs::read_symlink("/proc/self/exe"), root / "program");
  auto copy = [](dl_phdr_info* info, size_t, void* data) {
    fs::path path = info->dlpi_name;
    if (!path.is_absolute() || !fs::exists(path)) return 0;
    fs::path target = *static_cast<const fs::path*>(data) / path.relative_path();
    fs::create_directories(target.parent_path());
    fs::copy_file(path, target, fs::copy_options::overwrite_existing);
    return 0;
  };
  dl_iterate_phdr(copy, const_cast<fs::path*>(&root));
}

TEST(Chroot, WithoutProcAndSys) {
  std::string pattern = (fs::temp_directory_path() / "pcmalloc-root-XXXXXX").string();
  ASSERT_NE(mkdtemp(pattern.data()), nullptr);
  CopyInto(pattern);
  FreshProcess options;
  options.executable = "/program";
  options.environment = {"LD_LIBRARY_PATH=/lib/x86_64-linux-gnu:/usr/lib/x86_64-linux-gnu"};
  bool may = InChild([&] { ASSERT_EQ(chroot(pattern.c_str()), 0); });
  options.before_exec = [&] {
    if (chroot(pattern.c_str()) != 0 || chdir("/") != 0) _exit(125);
  };
  EXPECT_TRUE(!may || InFreshProcess("BareRoot", options));
  fs::remove_all(pattern);
  if (!may) GTEST_SKIP() << "chroot is not permitted";
}

}  // namespace
}  // namespace pcmalloc::testing
