#pragma once

#include <switchyard/core/error.hpp>
#include <switchyard/offload/block_memory.hpp>
#include <switchyard/offload/checksum.hpp>
#include <switchyard/offload/store.hpp>

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>
#if defined(__linux__)
#include <sys/vfs.h>
#endif

#include <algorithm>
#include <cerrno>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

namespace switchyard::offload {

static_assert(sizeof(off_t) == 8, "switchyard: files are larger than 2 GiB. Compile with -D_FILE_OFFSET_BITS=64.");

/// A part of a piece, as it stands in a file.
struct extent {
  int file;             ///< which of the store's files, from 0
  std::int64_t offset;  ///< bytes from the file's begin
  std::int64_t bytes;
  std::int64_t at;  ///< bytes from the piece's begin
};

/// How a store reads its files.
struct file_options {
  /// Reads that go through memory of the store's own, because what they want stands at no multiple of `block_bytes` in its file: so
  /// many at the same time, each with 2 MiB. More of them wait.
  int readers = default_readers;
  /// Whether the checksum of every piece that is read is compared with the one that was packed: some 9 GB/s for each reader.
  bool verify_reads = false;
  /// Whether the system may keep what was read in its page cache: a second copy, but reading it again costs no disk.
  bool page_cache = false;
  /// What reads: a program that counts, delays or fails reads puts its own here.
  ssize_t (*read_at)(int file, void* to, std::size_t bytes, off_t offset) = ::pread;
};

struct file_store_args {
  std::vector<std::string> files;  ///< their paths
  int layers, experts;             ///< experts of each layer
  std::int64_t piece_bytes;
  std::vector<std::vector<extent>> pieces;    ///< [layers * experts], of each what it is put together from
  std::vector<std::uint64_t> checksums = {};  ///< [layers * experts], or none
  std::string format = {};                    ///< `piece<Layer>::format()`, where that is known
  /// Where extents are no piece yet: turns what they make up, `stored_bytes` of it, into one. It is called by several threads.
  std::function<void(std::byte const* stored, std::byte* place)> arrange = {};
  std::int64_t stored_bytes = 0;
  file_options options = {};
};

namespace detail {

inline std::string in_quotes(std::string const& path) { return "\"" + path + "\""; }
inline std::string system_says(int error) { return std::generic_category().message(error); }

/// A file that is closed with it.
class descriptor {
 public:
  explicit descriptor(int number = -1) : number_(number) {}
  descriptor(descriptor&& other) noexcept : number_(std::exchange(other.number_, -1)) {}
  descriptor& operator=(descriptor&& other) noexcept {
    std::swap(number_, other.number_);
    return *this;
  }
  ~descriptor() {
    if (number_ >= 0) ::close(number_);
  }
  int number() const { return number_; }
  explicit operator bool() const { return number_ >= 0; }

 private:
  int number_;
};

/// Opens a path; a signal does not stop it. Where there is none, `errno` tells why.
inline descriptor open_path(std::string const& path, int flags, int mode = 0) {
  int number;
  do {
    number = ::open(path.c_str(), flags | O_CLOEXEC, mode);
  } while (number < 0 && errno == EINTR);
  return descriptor(number);
}

/// A file that is read.
struct open_file {
  std::string path;
  descriptor file;
  std::int64_t bytes = 0;
  bool direct = false;  ///< past the page cache, which takes whole blocks
};

/// What to do about a file that cannot be opened.
inline std::string hint_for(int error) {
  switch (error) {
    case ENOENT: return ". Give the path of a file that is there";
    case EACCES: return ". Let this program read it (chmod, chown)";
    case EMFILE: return ". Raise the number of files that a process may open (ulimit -n)";
    default: return "";
  }
}

/// Whether a file is memory already, so that nothing goes past a cache.
inline bool is_in_memory([[maybe_unused]] int file) {
#if defined(__linux__)
  struct statfs of;
  return ::fstatfs(file, &of) == 0 && (of.f_type == 0x01021994 || of.f_type == 0x858458f6l);  // tmpfs, ramfs
#else
  return false;
#endif
}

/// Opens a file to read it, past the page cache where the file system can and the caller wants. Throws what is wrong with it.
inline open_file open_to_read(std::string const& what, std::string const& path, bool want_direct) {
  open_file result;
  result.path = path;
  result.file = open_path(path, O_RDONLY);
  if (!result.file)
    fail(what, "a file that can be read", in_quotes(path) + ", " + system_says(errno) + hint_for(errno));
  struct stat of;
  if (::fstat(result.file.number(), &of) != 0) fail(what, "a file", in_quotes(path) + ", " + system_says(errno));
  if (!S_ISREG(of.st_mode)) {
    fail(what, "a file", in_quotes(path) + ", which is " + (S_ISDIR(of.st_mode) ? "a folder" : "no ordinary file"));
  }
  result.bytes = of.st_size;
#if defined(O_DIRECT)
  if (want_direct && !is_in_memory(result.file.number())) {
    // A file system may refuse at the first read what it took when the file was opened.
    if (descriptor direct = open_path(path, O_RDONLY | O_DIRECT)) {
      block_memory const memory = take_blocks(block_bytes);
      if (::pread(direct.number(), memory.get(), static_cast<std::size_t>(block_bytes), 0) >= 0) {
        result.file = std::move(direct);
        result.direct = true;
      }
    }
  }
#endif
#if defined(POSIX_FADV_RANDOM)
  // What stands after a piece is mostly not what is read next.
  if (!result.direct) ::posix_fadvise(result.file.number(), 0, 0, POSIX_FADV_RANDOM);
#endif
  return result;
}

}  // namespace detail

/// Pieces in files, each in one part or in several (`open_packed`, `open_safetensors`).
///
/// Files are read past the page cache where the file system can (O_DIRECT; `direct()` says), else by ordinary reads after which the system
/// is told to forget what it has kept. Whole blocks at multiples of `block_bytes` come straight into the place; anything else comes through
/// memory of the store's own. Nothing is allocated by `read` unless it fails. Several threads may read at the same time.
class file_store {
 public:
  /// Throws where a file cannot be read, or has no room for a part of a piece.
  explicit file_store(file_store_args args) : args_(std::move(args)) {
    auto const number = [](auto value) { return std::to_string(value); };
    constexpr char const* name = "offload::file_store";
    if (args_.layers < 1 || args_.experts < 1 || args_.piece_bytes < 1 || args_.options.readers < 1) {
      fail(name, "at least one layer, expert, byte of a piece and reader",
           number(args_.layers) + ", " + number(args_.experts) + ", " + number(args_.piece_bytes) + " and " +
               number(args_.options.readers));
    }
    auto const count = static_cast<std::size_t>(args_.layers) * static_cast<std::size_t>(args_.experts);
    if (args_.pieces.size() != count) {
      fail(name, "the extents of " + number(count) + " pieces", "those of " + number(args_.pieces.size()));
    }
    if (!args_.checksums.empty() && args_.checksums.size() != count) {
      fail(name, number(count) + " checksums, or none", number(args_.checksums.size()));
    }
    if (args_.options.verify_reads && args_.checksums.empty()) {
      fail(name, "checksums for .verify_reads", "files without any. Pack them (offload::pack), or leave it out");
    }
    if (!args_.arrange) args_.stored_bytes = args_.piece_bytes;
    for (std::string const& path : args_.files) {
      files_.push_back(detail::open_to_read(name, path, !args_.options.page_cache));
    }
    std::int64_t bounced = 0;  // bytes of the longest extent that does not come straight into its place
    for (std::size_t i = 0; i < count; ++i) bounced = std::max(bounced, check_piece(i));
    std::int64_t const bounce = std::min(most_bounced, place_bytes(bounced) + block_bytes);
    std::int64_t const stored = args_.arrange ? place_bytes(args_.stored_bytes) : 0;
    if (bounced > 0 || stored > 0) {
      memory_ = std::make_unique<memory_of_reads>(args_.options.readers, bounced > 0 ? bounce : 0, stored);
    }
  }
  file_store(file_store&&) noexcept = default;
  file_store& operator=(file_store&&) noexcept = default;

  int layers() const { return args_.layers; }
  int experts() const { return args_.experts; }
  std::int64_t piece_bytes() const { return args_.piece_bytes; }
  /// `piece<Layer>::format()` of the layers that it is for; empty where nobody said.
  std::string_view format() const { return args_.format; }
  /// Whether all files are read past the page cache.
  bool direct() const {
    return std::all_of(files_.begin(), files_.end(), [](detail::open_file const& f) { return f.direct; });
  }
  /// Where a piece stands, in the order in which it is put together.
  std::vector<extent> const& extents(int layer, int expert) const { return args_.pieces[index_of(layer, expert)]; }
  std::string const& path(int file) const { return files_[static_cast<std::size_t>(file)].path; }

  std::string read(int layer, int expert, std::byte* place) {
    if (std::string none = detail::no_such_piece(layers(), experts(), layer, expert); !none.empty()) return none;
    std::size_t const index = index_of(layer, expert);
    piece_name const name{layer, expert};
    std::string wrong;
    if (args_.arrange) {
      borrowed const memory(*memory_);
      wrong = read_extents(args_.pieces[index], name, memory->stored.get(), memory->bounce.get());
      if (wrong.empty()) args_.arrange(memory->stored.get(), place);
    } else if (is_bounced(args_.pieces[index])) {
      borrowed const memory(*memory_);
      wrong = read_extents(args_.pieces[index], name, place, memory->bounce.get());
    } else {
      wrong = read_extents(args_.pieces[index], name, place, nullptr);
    }
    if (wrong.empty() && args_.options.verify_reads) wrong = compare(layer, expert, place);
    return wrong;
  }

  /// Compares the checksum of a piece that was read with the one that was packed, where there are checksums. Returns nothing, or the
  /// end of a sentence.
  std::string compare(int layer, int expert, std::byte const* place) const {
    if (args_.checksums.empty()) return {};
    std::size_t const index = index_of(layer, expert);
    if (checksum(place, args_.piece_bytes) == args_.checksums[index]) return {};
    extent const& first = args_.pieces[index][0];
    return detail::in_quotes(files_[static_cast<std::size_t>(first.file)].path) + " with other bytes in " +
           piece_name{layer, expert}.text() + ", from byte " + std::to_string(first.offset) +
           " on, than were packed: the disk or a copy damaged it. Fetch or pack it again";
  }

 private:
  /// Larger requests gain little: README.md.
  static constexpr std::int64_t most_bounced = std::int64_t{2} << 20;

  struct piece_name {
    int layer, expert;
    std::string text() const { return "layer " + std::to_string(layer) + ", expert " + std::to_string(expert); }
  };

  /// What reads take that need memory of the store's own. Who finds none left waits.
  class memory_of_reads {
   public:
    struct slot {
      block_memory bounce, stored;
    };
    memory_of_reads(int count, std::int64_t bounce, std::int64_t stored) : bounce_bytes(bounce) {
      for (int i = 0; i < count; ++i) {
        slots_.push_back({bounce > 0 ? take_blocks(bounce) : nullptr, stored > 0 ? take_blocks(stored) : nullptr});
      }
      for (slot& s : slots_) free_.push_back(&s);
    }
    slot* take() {
      std::unique_lock lock(mutex_);
      returned_.wait(lock, [&] { return !free_.empty(); });
      slot* const result = free_.back();
      free_.pop_back();
      return result;
    }
    void give_back(slot* s) {
      std::lock_guard const lock(mutex_);
      free_.push_back(s);  // room for all was taken by the constructor
      returned_.notify_one();
    }
    std::int64_t const bounce_bytes;

   private:
    std::mutex mutex_;
    std::condition_variable returned_;
    std::vector<slot> slots_;
    std::vector<slot*> free_;
  };
  class borrowed {
   public:
    explicit borrowed(memory_of_reads& from) : from_(from), slot_(from.take()) {}
    borrowed(borrowed const&) = delete;
    borrowed& operator=(borrowed const&) = delete;
    ~borrowed() { from_.give_back(slot_); }
    memory_of_reads::slot* operator->() const { return slot_; }

   private:
    memory_of_reads& from_;
    memory_of_reads::slot* slot_;
  };

  std::size_t index_of(int layer, int expert) const {
    return static_cast<std::size_t>(layer) * static_cast<std::size_t>(args_.experts) + static_cast<std::size_t>(expert);
  }

  /// Whether an extent comes straight into its place. Past the page cache whole blocks do: what the last one overwrites behind the extent
  /// is put there after it.
  bool is_straight(extent const& part) const {
    return !files_[static_cast<std::size_t>(part.file)].direct ||
           (part.offset % block_bytes == 0 && part.at % block_bytes == 0);
  }
  bool is_bounced(std::vector<extent> const& parts) const {
    return std::any_of(parts.begin(), parts.end(), [&](extent const& part) { return !is_straight(part); });
  }

  /// Puts the extents of a piece in order, joins those that are one, and checks them. Returns the bytes of the longest one that does not come straight into its
  /// place.
  std::int64_t check_piece(std::size_t index) {
    std::vector<extent>& parts = args_.pieces[index];
    std::sort(parts.begin(), parts.end(), [](extent const& a, extent const& b) { return a.at < b.at; });
    std::int64_t end = 0;
    for (extent const& part : parts) {
      auto const experts = static_cast<std::size_t>(args_.experts);
      std::string const name = "offload::file_store, " +
                               piece_name{static_cast<int>(index / experts), static_cast<int>(index % experts)}.text();
      if (part.file < 0 || static_cast<std::size_t>(part.file) >= files_.size()) {
        fail(name, "an extent in one of " + std::to_string(files_.size()) + " files",
             "one in file " + std::to_string(part.file));
      }
      if (part.at < end || part.bytes < 1 || part.bytes > args_.stored_bytes - part.at) {
        fail(name, "extents that do not overlap, in a piece of " + std::to_string(args_.stored_bytes) + " bytes",
             "one of " + std::to_string(part.bytes) + " bytes at byte " + std::to_string(part.at));
      }
      detail::open_file const& file = files_[static_cast<std::size_t>(part.file)];
      if (part.offset < 0 || part.bytes > file.bytes - part.offset) {
        fail(name,
             std::to_string(part.bytes) + " bytes from byte " + std::to_string(part.offset) + " of " +
                 detail::in_quotes(file.path) + " on",
             "a file of " + std::to_string(file.bytes) + " bytes. Fetch or pack it again");
      }
      end = part.at + part.bytes;
    }
    if (parts.empty()) fail("offload::file_store", "an extent of every piece", "a piece of none");
    std::size_t count = 1;
    for (std::size_t i = 1; i < parts.size(); ++i) {
      extent &last = parts[count - 1], &part = parts[i];
      if (last.file == part.file && last.at + last.bytes == part.at && last.offset + last.bytes == part.offset) {
        last.bytes += part.bytes;
      } else {
        parts[count++] = part;
      }
    }
    parts.resize(count);
    std::int64_t bounced = 0;
    for (extent const& part : parts) {
      if (!is_straight(part)) bounced = std::max(bounced, part.bytes);
    }
    return bounced;
  }

  std::string read_extents(std::vector<extent> const& parts, piece_name name, std::byte* to, std::byte* bounce) {
    std::int64_t end = 0;
    for (extent const& part : parts) {
      // Every store gives the same bytes, those between two matrices too.
      std::memset(to + end, 0, static_cast<std::size_t>(part.at - end));
      end = part.at + part.bytes;
      detail::open_file const& file = files_[static_cast<std::size_t>(part.file)];
      std::string wrong = is_straight(part) ? read_bytes(file, name, part.offset, part.bytes, to + part.at)
                                            : read_through(bounce, file, name, part, to);
      if (!wrong.empty()) return wrong;
      forget(file, part);
    }
    std::memset(to + end, 0, static_cast<std::size_t>(args_.stored_bytes - end));
    return {};
  }

  std::string read_through(std::byte* bounce, detail::open_file const& file, piece_name name, extent const& part,
                           std::byte* to) const {
    std::int64_t const end = part.offset + part.bytes;
    for (std::int64_t begin = part.offset; begin < end;) {
      std::int64_t const block = begin / block_bytes * block_bytes;
      std::int64_t const until = std::min(end, block + memory_->bounce_bytes);
      std::string wrong = read_bytes(file, name, block, until - block, bounce);
      if (!wrong.empty()) return wrong;
      std::memcpy(to + part.at + (begin - part.offset), bounce + (begin - block),
                  static_cast<std::size_t>(until - begin));
      begin = until;
    }
    return {};
  }

  /// Reads at least `wanted` bytes, and no more than the blocks that they are in.
  std::string read_bytes(detail::open_file const& file, piece_name name, std::int64_t offset, std::int64_t wanted,
                         std::byte* to) const {
    std::int64_t const asked = file.direct ? place_bytes(wanted) : wanted;
    for (std::int64_t done = 0;;) {
      ssize_t const got = args_.options.read_at(file.file.number(), to + done, static_cast<std::size_t>(asked - done),
                                                static_cast<off_t>(offset + done));
      if (got < 0 && errno == EINTR) continue;
      if (got < 0) {
        return detail::in_quotes(file.path) + ", whose bytes from " + std::to_string(offset + done) + " on, in " +
               name.text() + ", cannot be read: " + detail::system_says(errno) +
               ". Look into the system's log for errors of the disk";
      }
      if (done + got >= wanted) return {};
      // What goes past the page cache goes on at a block.
      std::int64_t const next = file.direct ? (done + got) / block_bytes * block_bytes : done + got;
      if (next == done) return ended(file, name, offset, wanted, offset + done + got);
      done = next;
    }
  }

  static std::string ended(detail::open_file const& file, piece_name name, std::int64_t offset, std::int64_t wanted,
                           std::int64_t at) {
    struct stat of;
    bool const is_cut = ::fstat(file.file.number(), &of) == 0 && of.st_size < offset + wanted;
    return detail::in_quotes(file.path) + ", which ended at byte " + std::to_string(at) + ", in " + name.text() +
           (is_cut
                ? ", and had " + std::to_string(file.bytes) +
                      " bytes when it was opened: it was cut meanwhile. Fetch or pack it again"
                : " for this read, though the file goes on. Open it with .page_cache, or look into the system's log");
  }

  /// Without O_DIRECT: the system shall not keep a second copy.
  void forget([[maybe_unused]] detail::open_file const& file, [[maybe_unused]] extent const& part) const {
#if defined(POSIX_FADV_DONTNEED)
    if (file.direct || args_.options.page_cache) return;
    std::int64_t const begin = part.offset / block_bytes * block_bytes;
    ::posix_fadvise(file.file.number(), begin, place_bytes(part.offset + part.bytes - begin), POSIX_FADV_DONTNEED);
#endif
  }

  file_store_args args_;
  std::vector<detail::open_file> files_;
  std::unique_ptr<memory_of_reads> memory_;  ///< none where all comes straight into its place
};
static_assert(expert_store<file_store>);

}  // namespace switchyard::offload
