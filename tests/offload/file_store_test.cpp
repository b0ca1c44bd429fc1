#include "catch.hpp"
#include "support/failing_store.hpp"
#include "support/said.hpp"
#include "support/temporary_folder.hpp"

#include <switchyard/offload/block_memory.hpp>
#include <switchyard/offload/checksum.hpp>
#include <switchyard/offload/file_store.hpp>
#include <switchyard/offload/host_store.hpp>
#include <switchyard/offload/packed_file.hpp>
#include <switchyard/offload/read_rate.hpp>

#include <fcntl.h>
#include <sys/file.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <random>
#include <string>
#include <thread>
#include <type_traits>
#include <utility>
#include <vector>

using Catch::Matchers::ContainsSubstring;
using support::said;
namespace offload = switchyard::offload;

namespace {

/// Pieces of random bytes in memory.
struct pieces {
  int layers, experts;
  std::int64_t bytes;
  std::vector<std::byte> memory;
  offload::host_store store;

  pieces(int layer_count, int expert_count, std::int64_t piece_bytes)
      : layers(layer_count),
        experts(expert_count),
        bytes(piece_bytes),
        memory(static_cast<std::size_t>(layer_count * expert_count) *
               static_cast<std::size_t>(offload::place_bytes(piece_bytes))),
        store({.pieces = memory.data(), .layers = layers, .experts = experts, .piece_bytes = bytes}) {
    std::mt19937 random(static_cast<unsigned>(piece_bytes));
    for (std::byte& b : memory) b = static_cast<std::byte>(random());
  }
};

/// How many pieces of a store are not those that were expected, or could not be read.
template <class Store>
int count_wrong(Store& store, pieces const& expected) {
  offload::block_memory const place = offload::take_blocks(expected.bytes);
  int wrong = 0;
  for (int layer = 0; layer < expected.layers; ++layer) {
    for (int expert = 0; expert < expected.experts; ++expert) {
      std::memset(place.get(), 0xee, static_cast<std::size_t>(offload::place_bytes(expected.bytes)));
      wrong +=
          !store.read(layer, expert, place.get()).empty() ||
          std::memcmp(place.get(), expected.store.at(layer, expert), static_cast<std::size_t>(expected.bytes)) != 0;
    }
  }
  return wrong;
}

void flip(std::string const& path, std::int64_t offset) {
  std::vector<char> bytes = support::read_file(path);
  bytes[static_cast<std::size_t>(offset)] ^= 0x10;
  support::write_file(path, bytes);
}

// What `file_options::read_at` of a test reads by: it is a plain function, and so are its settings.
std::atomic<int> reads = 0;
ssize_t interrupted(int file, void* to, std::size_t bytes, off_t offset) {
  if (reads++ % 2 == 0) {
    errno = EINTR;
    return -1;
  }
  return ::pread(file, to, bytes, offset);
}
ssize_t in_parts(int file, void* to, std::size_t bytes, off_t offset) {
  ++reads;
  return ::pread(file, to, std::min<std::size_t>(bytes, 4096), offset);
}
ssize_t in_small_parts(int file, void* to, std::size_t bytes, off_t offset) {
  return std::min<ssize_t>(::pread(file, to, bytes, offset), 1000);
}
ssize_t with_an_error(int file, void* to, std::size_t bytes, off_t offset) {
  if (++reads == 2) {
    errno = EIO;
    return -1;
  }
  return ::pread(file, to, bytes, offset);
}

}  // namespace

TEST_CASE("a checksum is XXH64", "[offload]") {
  std::vector<std::byte> bytes(1000);
  for (std::size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<std::byte>(i * 131 + 7);
  CHECK(offload::checksum(bytes.data(), 0) == 0xef46db3751d8e999u);
  CHECK(offload::checksum(bytes.data(), 3) == 0xbed43740ee6332bbu);
  CHECK(offload::checksum(bytes.data(), 31) == 0x6711d55e306b5d8fu);
  CHECK(offload::checksum(bytes.data(), 33) == 0x09f85eeb4e1cbe9fu);
  CHECK(offload::checksum(bytes.data(), 1000) == 0x0bf0bdbcc82eb373u);
}

TEST_CASE("a packed file gives back every piece", "[offload]") {
  support::temporary_folder const folder;
  std::string const path = folder / "experts.bin";
  for (std::int64_t bytes : {1, 63, 4095, 4096, 4097, 20000}) {
    CAPTURE(bytes);
    pieces const expected(3, 5, bytes);
    std::int64_t told = 0;
    REQUIRE(offload::pack(path, expected.store, [&](std::int64_t done, std::int64_t all) {
      ++told;
      return done == told && all == 15;
    }));
    CHECK(told == 15);
    CHECK(folder.size() == 1);
    CHECK(offload::verify(path).empty());

    offload::file_store store = offload::open_packed(path);
    CHECK(store.layers() == 3);
    CHECK(store.experts() == 5);
    CHECK(store.piece_bytes() == bytes);
    CHECK(count_wrong(store, expected) == 0);
    offload::file_store moved(std::move(store));
    CHECK(count_wrong(moved, expected) == 0);
    offload::file_store checked = offload::open_packed(path, {.verify_reads = true, .page_cache = true});
    CHECK_FALSE(checked.direct());
    CHECK(count_wrong(checked, expected) == 0);
    // A packed file is packed again, onto itself.
    REQUIRE(offload::pack(path, moved));
    offload::file_store again = offload::open_packed(path);
    CHECK(count_wrong(again, expected) == 0);
  }
  STATIC_REQUIRE_FALSE(std::is_copy_constructible_v<offload::file_store>);
  STATIC_REQUIRE(offload::store_in_memory<offload::host_store>);
}

TEST_CASE("a packed file that is damaged says what is wrong with it", "[offload]") {
  support::temporary_folder const folder;
  std::string const path = folder / "experts.bin";
  pieces const expected(2, 3, 5000);
  offload::pack(path, expected.store);
  std::vector<char> const whole = support::read_file(path);
  REQUIRE(whole.size() == 4096 + 6 * 8192);
  auto const open = [&] { return said([&] { offload::open_packed(path); }); };
  auto const resized = [&](std::size_t size) {
    std::vector<char> bytes = whole;
    bytes.resize(size);
    support::write_file(path, bytes);
    return open();
  };

  CHECK_THAT(resized(0), ContainsSubstring("experts.bin\", which has 0 bytes, too few for one"));
  CHECK_THAT(resized(55), ContainsSubstring("which has 55 bytes"));
  CHECK_THAT(resized(4000), ContainsSubstring("expected 53248 bytes, as its header has it, got"));
  CHECK_THAT(
      resized(whole.size() - 1),
      ContainsSubstring("which ends at byte 53247: it was cut, or is still being copied. Fetch or pack it again"));
  CHECK_THAT(resized(whole.size() + 1), ContainsSubstring("which has 53249: something was written behind it"));

  auto const flipped = [&](std::int64_t offset) {
    support::write_file(path, whole);
    flip(path, offset);
    return open();
  };
  CHECK_THAT(flipped(0), ContainsSubstring("expected a file that offload::pack wrote, got"));
  CHECK_THAT(flipped(8), ContainsSubstring("whose header is damaged: it has another checksum than was written"));
  CHECK_THAT(flipped(16), ContainsSubstring("expected version 1 of packed files, got"));
  CHECK_THAT(flipped(20), ContainsSubstring("its sizes do not fit each other"));
  CHECK_THAT(flipped(60), ContainsSubstring("another checksum than was written"));
  int missed = 0;
  for (std::int64_t offset = 0; offset < 4096; offset += offset < 120 ? 1 : 61) missed += flipped(offset).empty();
  CHECK(missed == 0);

  std::filesystem::remove(path);
  CHECK_THAT(open(),
             ContainsSubstring("experts.bin\", No such file or directory. Give the path of a file that is there"));
  std::filesystem::create_directory(path);
  CHECK_THAT(open(), ContainsSubstring("experts.bin\", which is a folder"));
}

TEST_CASE("a piece that is damaged is found and named", "[offload]") {
  support::temporary_folder const folder;
  std::string const path = folder / "experts.bin";
  pieces const expected(2, 3, 5000);
  offload::pack(path, expected.store);
  flip(path, 4096 + 4 * 8192 + 4999);
  flip(path, 4096 + 4 * 8192 + 5000);  // behind the piece: nobody reads it
  flip(path, 4096 + 5 * 8192 + 6000);

  std::vector<std::string> const found = offload::verify(path);
  REQUIRE(found.size() == 1);
  CHECK_THAT(found[0],
             ContainsSubstring("experts.bin\" with other bytes in layer 1, expert 1, from byte 36864 on, than were "
                               "packed: the disk or a copy damaged it. Fetch or pack it again"));
  CHECK(offload::verify(path, [](std::int64_t done, std::int64_t) { return done < 4; }).empty());

  offload::block_memory const place = offload::take_blocks(5000);
  offload::file_store store = offload::open_packed(path, {.verify_reads = true});
  CHECK(store.read(1, 1, place.get()) == found[0]);
  CHECK(store.read(1, 2, place.get()).empty());
  CHECK(store.read(2, 0, place.get()) == "no layer 2, expert 0 in a store of 2 layers of 3 experts");
}

TEST_CASE("packing that does not end leaves nothing behind, and what was there", "[offload]") {
  support::temporary_folder const folder;
  std::string const path = folder / "experts.bin";
  pieces expected(2, 3, 5000);
  offload::pack(path, expected.store);
  std::vector<char> const before = support::read_file(path);
  auto const unchanged = [&] { return folder.size() == 1 && support::read_file(path) == before; };

  support::failing_store failing(expected.store);
  failing.fail_read(4);
  CHECK(said([&] { offload::pack(path, failing); }) ==
        "switchyard: offload::pack, \"" + path +
            "\": expected a store that can be read, got the store fails on request");
  CHECK(unchanged());
  CHECK_FALSE(offload::pack(path, expected.store, [](std::int64_t done, std::int64_t) { return done < 2; }));
  CHECK(unchanged());

  struct endless : offload::host_store {
    using offload::host_store::host_store;
    int experts() const { return 1 << 20; }
    std::int64_t piece_bytes() const { return std::int64_t{1} << 38; }
  };
  endless huge({.pieces = expected.memory.data(), .layers = 1, .experts = 1, .piece_bytes = 1});
  CHECK_THAT(said([&] { offload::pack(path, huge); }),
             ContainsSubstring("expected room for 288230376160104448 bytes, got a disk with "));
  CHECK(unchanged());

  rlimit old{};
  ::getrlimit(RLIMIT_FSIZE, &old);
  rlimit const small{16384, old.rlim_max};
  std::signal(SIGXFSZ, SIG_IGN);
  ::setrlimit(RLIMIT_FSIZE, &small);
  std::string const full = said([&] { offload::pack(path, expected.store); });
  ::setrlimit(RLIMIT_FSIZE, &old);
  CHECK_THAT(full,
             ContainsSubstring("expected room for 53248 bytes, got File too large. Make room, or give another folder"));
  CHECK(unchanged());

  CHECK_THAT(said([&] { offload::pack(folder.path(), expected.store); }),
             ContainsSubstring("expected the name of a file, got a folder"));
  CHECK_THAT(said([&] { offload::pack(folder / "none/experts.bin", expected.store); }),
             ContainsSubstring("expected a folder that takes files, got No such file or directory"));
  {
    int const other = ::open((path + ".part").c_str(), O_RDWR | O_CREAT, 0666);
    ::flock(other, LOCK_EX);
    CHECK_THAT(said([&] { offload::pack(path, expected.store); }),
               ContainsSubstring("expected nobody else who writes this file, got another one who does"));
    ::close(other);
  }
  // What a process left that was ended is written over.
  CHECK(offload::pack(path, expected.store));
  CHECK(unchanged());
}

TEST_CASE("a read goes on after a signal and a part, and an error has a name", "[offload]") {
  support::temporary_folder const folder;
  std::string const path = folder / "experts.bin";
  pieces const expected(1, 2, 9000);
  offload::pack(path, expected.store);
  offload::block_memory const place = offload::take_blocks(9000);
  for (bool const page_cache : {false, true}) {
    auto const open = [&](auto* read_at) {
      reads = 0;
      return offload::open_packed(path, {.verify_reads = true, .page_cache = page_cache, .read_at = read_at});
    };
    offload::file_store a = open(interrupted), b = open(in_parts), c = open(with_an_error);
    CHECK(count_wrong(a, expected) == 0);
    CHECK(reads == 4);
    reads = 0;
    CHECK(count_wrong(b, expected) == 0);
    CHECK(reads == 6);
    reads = 0;
    CHECK(c.read(0, 0, place.get()).empty());
    CHECK(c.read(0, 1, place.get()) ==
          "\"" + path +
              "\", whose bytes from 16384 on, in layer 0, expert 1, cannot be read: Input/output error. Look into "
              "the system's log for errors of the disk");
    CHECK(c.read(0, 1, place.get()).empty());
    // Past the page cache nothing goes on within a block.
    offload::file_store d = open(in_small_parts);
    CHECK(count_wrong(d, expected) == (d.direct() ? 2 : 0));
    if (d.direct()) {
      CHECK_THAT(
          d.read(0, 0, place.get()),
          ContainsSubstring("which ended at byte 5096, in layer 0, expert 0 for this read, though the file goes on"));
    }
  }

  for (bool const page_cache : {false, true}) {
    offload::pack(path, expected.store);
    offload::file_store store = offload::open_packed(path, {.page_cache = page_cache});
    std::string const cut = "\"" + path + "\", which ended at byte ";
    for (int const size : {28000, 20480, 16384, 100}) {
      REQUIRE(::truncate(path.c_str(), size) == 0);
      CHECK(store.read(0, 1, place.get()).starts_with(size < 16384 ? cut : cut + std::to_string(size)) ==
            (size < 16384 + 9000));
    }
    CHECK_THAT(
        store.read(0, 1, place.get()),
        ContainsSubstring(", in layer 0, expert 1, and had 28672 bytes when it was opened: it was cut meanwhile."));
  }
}

TEST_CASE("a piece is put together from parts anywhere in several files", "[offload]") {
  support::temporary_folder const folder;
  std::mt19937 random(7);
  std::vector<std::vector<char>> files;
  for (std::size_t const size : {3000000, 12345}) {
    std::vector<char> bytes(size);
    for (char& b : bytes) b = static_cast<char>(random());
    files.push_back(bytes);
    support::write_file(folder / std::to_string(files.size()), bytes);
  }
  // The first piece is longer than what one request takes, and ends with its file; others are small, with room between their parts.
  constexpr std::int64_t bytes = 2200000;
  pieces expected(1, 6, bytes);
  std::fill(expected.memory.begin(), expected.memory.end(), std::byte{0});
  offload::file_store_args args{
      .files = {folder / "1", folder / "2"}, .layers = 1, .experts = 6, .piece_bytes = bytes, .pieces = {}};
  for (int expert = 0; expert < 6; ++expert) {
    std::vector<offload::extent> parts{{1, 4096 * (expert % 2), 4096, 8192 * (expert % 3)},
                                       {1, 12345 - 1 - expert, 1 + expert, bytes - 1 - expert},
                                       {1, 8191, 2, 100000},
                                       {1, 8193, 7, 100002},
                                       {1, 8200, 3, 200000},
                                       {0, 100 * expert + 11, 5000, 30001}};
    if (expert == 0) parts = {{0, 3000000 - bytes, bytes, 0}};
    for (offload::extent const& p : parts) {
      std::memcpy(const_cast<std::byte*>(expected.store.at(0, expert)) + p.at,
                  files[static_cast<std::size_t>(p.file)].data() + p.offset, static_cast<std::size_t>(p.bytes));
    }
    args.pieces.push_back(parts);
  }
  for (bool const page_cache : {false, true}) {
    args.options.page_cache = page_cache;
    offload::file_store store(args);
    CHECK(store.extents(0, 0).size() == 1);
    CHECK(store.extents(0, 1).size() == 5);  // two were neighbours in both
    CHECK(store.path(store.extents(0, 0)[0].file) == folder / "1");
    // More threads than the store has memory for.
    std::atomic<int> wrong = 0;
    std::vector<std::thread> threads;
    for (int t = 0; t < 4; ++t) threads.emplace_back([&] { wrong += count_wrong(store, expected); });
    for (std::thread& t : threads) t.join();
    CHECK(wrong == 0);
  }
  // With what puts a piece in order.
  args.stored_bytes = bytes;
  args.piece_bytes = 2;
  args.arrange = [](std::byte const* stored, std::byte* place) {
    place[0] = stored[30001];
    place[1] = stored[30002];
  };
  offload::file_store arranged(args);
  offload::block_memory const place = offload::take_blocks(2);
  CHECK(arranged.read(0, 3, place.get()).empty());
  CHECK(place[1] == static_cast<std::byte>(files[0][312]));
}

TEST_CASE("a store of wrong numbers is refused", "[offload]") {
  support::temporary_folder const folder;
  std::string const path = folder / "a";
  support::write_file(path, std::vector<char>(100));
  offload::file_store_args const right{
      .files = {path}, .layers = 1, .experts = 1, .piece_bytes = 10, .pieces = {{{0, 0, 10, 0}}}};
  auto const refused = [&](auto change) {
    offload::file_store_args args = right;
    change(args);
    return said([&] { offload::file_store const store(args); });
  };
  CHECK(refused([](auto&) {}).empty());
  CHECK_THAT(refused([](auto& a) { a.experts = 0; }), ContainsSubstring("at least one layer, expert, byte of a piece"));
  CHECK_THAT(refused([](auto& a) { a.experts = 2; }),
             ContainsSubstring("expected the extents of 2 pieces, got those of 1"));
  CHECK_THAT(refused([](auto& a) { a.pieces[0].clear(); }), ContainsSubstring("an extent of every piece"));
  CHECK_THAT(refused([](auto& a) { a.pieces[0][0].file = 1; }),
             ContainsSubstring("in one of 1 files, got one in file 1"));
  CHECK_THAT(refused([](auto& a) { a.pieces[0][0].at = 1; }), ContainsSubstring("got one of 10 bytes at byte 1"));
  CHECK_THAT(refused([](auto& a) { a.pieces[0].push_back({0, 0, 1, 9}); }), ContainsSubstring("do not overlap"));
  CHECK_THAT(refused([](auto& a) { a.pieces[0][0].offset = 91; }),
             ContainsSubstring("expected 10 bytes from byte 91 of \"" + path + "\" on, got a file of 100 bytes"));
  CHECK_THAT(refused([](auto& a) { a.options.verify_reads = true; }), ContainsSubstring("checksums for .verify_reads"));
  CHECK_THAT(refused([](auto& a) { a.checksums = {1, 2}; }), ContainsSubstring("expected 1 checksums, or none, got 2"));

  std::byte const memory[64] = {};
  auto const host = [&](offload::host_store_args args) { return said([&] { offload::host_store const store(args); }); };
  CHECK(host({.pieces = memory, .layers = 1, .experts = 2, .piece_bytes = 16, .piece_stride = 32}).empty());
  CHECK_THAT(host({.pieces = memory, .layers = 0, .experts = 2, .piece_bytes = 16}),
             ContainsSubstring("at least one layer, expert and byte"));
  CHECK_THAT(host({.pieces = nullptr, .layers = 1, .experts = 2, .piece_bytes = 16}), ContainsSubstring("got nullptr"));
  CHECK_THAT(host({.pieces = memory, .layers = 1, .experts = 2, .piece_bytes = 16, .piece_stride = 8}),
             ContainsSubstring("expected at least the 16 bytes of a piece, got 8"));
}

TEST_CASE("a read rate is measured by the reads of a store", "[offload]") {
  pieces expected(2, 3, 5000);
  support::failing_store counted(expected.store);
  CHECK(offload::measured_read_rate(counted, {.seconds = 60, .pieces = 12}) > 0);
  std::vector<std::pair<int, int>> all = counted.reads();
  std::sort(all.begin(), all.end());
  REQUIRE(all.size() == 12);
  for (std::size_t i = 0; i < 12; ++i) CHECK(all[i] == std::pair(static_cast<int>(i / 6), static_cast<int>(i / 2 % 3)));
  CHECK(counted.most_at_once() <= offload::default_readers);
  counted.fail_piece(1, 1);
  CHECK_THAT(said([&] { offload::measured_read_rate(counted, {.seconds = 60}); }),
             ContainsSubstring("offload::measured_read_rate: expected a store that can be read, got the store fails"));
}
