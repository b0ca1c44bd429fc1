#include <switchyard/parallel/group.hpp>
#include <switchyard/transport/nccl.hpp>

#include <spawn.h>
#include <sys/wait.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <utility>
#include <vector>

#include "catch.hpp"
#include "transport/nccl/nccl_ranks.hpp"

/// What the transport promises, between threads with a device each, and between processes.
namespace {

using namespace support;
using switchyard::message;
using switchyard::transport::nccl;
using switchyard::transport::notice_board;

constexpr int ranks = 4;

/// What one rank sends another in a batch: other bytes for each, and none for some.
std::int64_t bytes_of(int from, int to, int batch) {
  return (from + 2 * to + batch) % 5 == 0 ? 0 : 1000 * from + 77 * to + 13 * batch + 1;
}
std::byte byte_of(int from, int to, int batch, std::int64_t at) {
  return static_cast<std::byte>((31 * from + 17 * to + 7 * batch + at * at) % 251);
}

enum class memory { of_host, of_device };

/// Room for messages, that the host fills and looks at.
class room {
 public:
  room(memory where, std::int64_t bytes) : where_(where), host_(static_cast<std::size_t>(bytes)) {
    if (where == memory::of_device) expect_cuda(cudaMalloc(&device_, host_.size()));
  }
  room(room&& other) noexcept
      : where_(other.where_), host_(std::move(other.host_)), device_(std::exchange(other.device_, nullptr)) {}
  ~room() { cudaFree(device_); }
  void* data() { return where_ == memory::of_device ? device_ : host_.data(); }
  std::vector<std::byte, nccl::allocator<std::byte>>& host() { return host_; }
  /// Enqueues the way to the device, or back.
  void copy(cudaMemcpyKind kind, cudaStream_t on) {
    if (where_ == memory::of_host) return;
    bool const in = kind == cudaMemcpyHostToDevice;
    expect_cuda(cudaMemcpyAsync(in ? device_ : host_.data(), in ? host_.data() : device_, host_.size(), kind, on));
  }

 private:
  memory where_;
  std::vector<std::byte, nccl::allocator<std::byte>> host_;
  void* device_ = nullptr;
};

/// Batches of messages between all ranks, begun before any is waited for; tags alternate.
void exchange(nccl& transport, memory where) {
  constexpr int batches = 6;
  int const me = transport.rank(), all = transport.ranks();
  cudaStream_t stream = nullptr;
  expect_cuda(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  std::vector<room> sent, received;
  sent.reserve(static_cast<std::size_t>(batches * all));
  received.reserve(static_cast<std::size_t>(batches * all));
  for (int b = 0; b < batches; ++b) {
    std::vector<message> sends, receives;
    for (int other = 0; other < all; ++other) {
      std::int64_t const to = bytes_of(me, other, b), from = bytes_of(other, me, b);
      if (other == me) continue;
      if (to > 0) {
        room& out = sent.emplace_back(where, to);
        for (std::int64_t i = 0; i < to; ++i) out.host()[static_cast<std::size_t>(i)] = byte_of(me, other, b, i);
        out.copy(cudaMemcpyHostToDevice, stream);
        sends.push_back({other, out.data(), to});
      }
      if (from > 0) receives.push_back({other, received.emplace_back(where, from).data(), from});
    }
    transport.follow(stream);  // what is sent is still on its way to the device
    transport.start(b % 2, sends, receives);
  }
  for (int const tag : {1, 0}) {
    expect(comes_true([&] { return transport.done(tag); }), "a batch ends");
  }
  expect(transport.done(2) && transport.missing(0) == -1, "nothing is open");
  std::size_t next = 0;
  for (int b = 0; b < batches; ++b) {
    for (int other = 0; other < all; ++other) {
      std::int64_t const from = bytes_of(other, me, b);
      if (other == me || from == 0) continue;
      room& in = received[next++];
      in.copy(cudaMemcpyDeviceToHost, stream);
      expect_cuda(cudaStreamSynchronize(stream));
      for (std::int64_t i = 0; i < from; ++i) {
        expect(in.host()[static_cast<std::size_t>(i)] == byte_of(other, me, b, i),
               "byte " + std::to_string(i) + " of rank " + std::to_string(other) + " in batch " + std::to_string(b));
      }
    }
  }
  expect_cuda(cudaStreamDestroy(stream));
}

TEST_CASE("batches of NCCL bring every byte, from host and device memory, between threads", "[nccl]") {
  if (!have_devices(ranks)) return;
  CHECK(on_threads(ranks, [](ncclUniqueId const& id, int rank) {
          communicator const all(id, rank, ranks);
          nccl transport(all);
          expect(transport.rank() == rank && transport.ranks() == ranks, "a rank knows its number");
          exchange(transport, memory::of_host);
          exchange(transport, memory::of_device);
        }).empty());
}

TEST_CASE("one rank alone has nothing to wait for", "[nccl]") {
  if (!have_devices(1)) return;
  CHECK(on_threads(1, [](ncclUniqueId const& id, int rank) {
          communicator const all(id, rank, 1);
          nccl transport(all);
          transport.start(0, {}, {});
          expect(transport.done(0), "nothing is open");
        }).empty());
}

/// A message from and to each other rank, of host memory.
struct short_batch {
  std::vector<std::int64_t, nccl::allocator<std::int64_t>> out, in;
  std::vector<message> sends, receives;

  explicit short_batch(nccl const& transport) : out(static_cast<std::size_t>(transport.ranks()), 5), in(out.size(), 0) {
    for (int r = 0; r < transport.ranks(); ++r) {
      if (r == transport.rank()) continue;
      sends.push_back({r, &out[static_cast<std::size_t>(r)], sizeof(std::int64_t)});
      receives.push_back({r, &in[static_cast<std::size_t>(r)], sizeof(std::int64_t)});
    }
  }
};

TEST_CASE("a rank that does not come is known by its number, and tells why by the notice board", "[nccl]") {
  if (!have_devices(ranks)) return;
  constexpr int late = 2;
  board_memory memory(ranks);
  std::atomic<int> seen = 0;
  CHECK(on_threads(ranks, [&](ncclUniqueId const& id, int rank) {
          communicator const all(id, rank, ranks);
          notice_board board(memory.data(), rank, ranks);
          nccl transport(all, board);
          short_batch batch(transport);
          if (rank == late) {
            expect(comes_true([&] { return seen == ranks - 1; }), "the others see that it is missing");
            transport.tell_failure("the weights have not come");
          } else {
            transport.start(3, batch.sends, batch.receives);
            expect(comes_true([&] { return !transport.done(3) && transport.missing(3) == late; }),
                   "the late rank is missing");
            expect(transport.failure().rank == -1, "nobody has failed yet");
            ++seen;
            expect(comes_true([&] { return transport.failure().rank == late; }), "the late rank's failure is heard");
            expect(transport.failure().text == "the weights have not come", "its text is heard");
          }
          transport.abandon();
          expect(transport.done(3), "nothing is open");
          std::string said;
          try {
            transport.start(3, batch.sends, batch.receives);
          } catch (switchyard::error const& e) {
            said = e.what();
          }
          expect(said.find("one that was abandoned") != std::string::npos, "an abandoned transport says so: " + said);
        }).empty());
}

TEST_CASE("a group on NCCL names the rank that does not come in time, which hears of it when it comes", "[nccl]") {
  if (!have_devices(ranks)) return;
  namespace parallel = switchyard::parallel;
  constexpr int late = 2;
  board_memory memory(ranks);
  std::atomic<int> gone = 0;
  CHECK(on_threads(ranks, [&](ncclUniqueId const& id, int rank) {
          communicator const all(id, rank, ranks);
          notice_board board(memory.data(), rank, ranks);
          nccl transport(all, board);
          parallel::group<nccl> group(transport, parallel::placement::blocks(2 * ranks, ranks), {.time_out = 2.0});
          if (rank == late) expect(comes_true([&] { return gone == ranks - 1; }), "the others give up");
          std::string said = "nothing";
          try {
            group.announce({}, "no layer", 1, 0, 0);
          } catch (switchyard::error const& e) {
            said = e.what();
          }
          ++gone;
          std::string const expected = rank == late ? "" : "rank 2: expected its message within";
          expect(said != "nothing" && said.find(expected) != std::string::npos, said);
          expect(group.broken(), "the group is of no use any more");
        }).empty());
}

/// In a process of its own: rank 1 dies, and the others get an error of NCCL, or see that it is missing.
void run_process(ncclUniqueId const& id, int rank) {
  communicator const all(id, rank, ranks);
  nccl transport(all);
  exchange(transport, memory::of_device);
  short_batch batch(transport);
  transport.start(0, batch.sends, batch.receives);
  expect(comes_true([&] { return transport.done(0); }), "a batch ends");
  if (rank == 1) std::_Exit(0);
  std::string said;
  try {
    transport.start(1, batch.sends, batch.receives);
    expect(!comes_true([&] { return transport.done(1); }, 5.0), "a message of a dead rank does not come");
    expect(transport.missing(1) == 1, "rank 1 is missing");
  } catch (switchyard::error const& e) {
    said = e.what();
    expect(said.find("transport::nccl") != std::string::npos, said);
  }
  transport.abandon();
}

constexpr char rank_variable[] = "SWITCHYARD_TEST_RANK", id_variable[] = "SWITCHYARD_TEST_NCCL_ID";

std::string as_text(ncclUniqueId const& id) {
  std::string text;
  for (char const c : id.internal) {
    char hex[3];
    std::snprintf(hex, sizeof hex, "%02x", static_cast<unsigned char>(c));
    text += hex;
  }
  return text;
}
ncclUniqueId from_text(std::string const& text) {
  ncclUniqueId id{};
  for (std::size_t i = 0; i < sizeof id.internal; ++i) {
    id.internal[i] = static_cast<char>(std::stoi(text.substr(2 * i, 2), nullptr, 16));
  }
  return id;
}

TEST_CASE("a rank of the test between processes", "[.]") {
  char const *const rank = std::getenv(rank_variable), *const id = std::getenv(id_variable);
  if (rank == nullptr || id == nullptr) SKIP("it is started by the test below");
  run_process(from_text(id), std::atoi(rank));
}

TEST_CASE("batches of NCCL bring every byte between processes, and one that dies is no other's end", "[nccl]") {
  if (!have_devices(ranks)) return;
  ncclUniqueId id;
  expect_nccl(ncclGetUniqueId(&id));
  REQUIRE(setenv(id_variable, as_text(id).c_str(), 1) == 0);
  std::vector<pid_t> processes;
  for (int r = 0; r < ranks; ++r) {
    REQUIRE(setenv(rank_variable, std::to_string(r).c_str(), 1) == 0);
    char program[] = "/proc/self/exe", name[] = "a rank of the test between processes";
    char* arguments[] = {program, name, nullptr};
    REQUIRE(posix_spawn(&processes.emplace_back(), program, nullptr, nullptr, arguments, environ) == 0);
  }
  for (pid_t const process : processes) {
    int status = -1;
    REQUIRE(waitpid(process, &status, 0) == process);
    CHECK(status == 0);
  }
}

}  // namespace
