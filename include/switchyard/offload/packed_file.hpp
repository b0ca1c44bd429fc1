#pragma once

#include <switchyard/core/error.hpp>
#include <switchyard/offload/block_memory.hpp>
#include <switchyard/offload/checksum.hpp>
#include <switchyard/offload/file_store.hpp>
#include <switchyard/offload/piece.hpp>
#include <switchyard/offload/store.hpp>

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <bit>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <functional>
#include <string>
#include <utility>
#include <vector>

/// A file of our own for pieces, which is read at the disk's rate: every piece stands at a multiple of `block_bytes`.
///
/// It begins with a header in whole blocks, little-endian: `detail::packed_header`, the format's text, zeros to a multiple of 8 bytes, and
/// the checksum of every piece, 64 bits each (`checksum`), layer by layer. Then come the pieces, `place_bytes(piece_bytes)` bytes each, with
/// zeros behind those of the piece.
namespace switchyard::offload {

/// Called after every piece. It returns false to stop.
using pack_progress = std::function<bool(std::int64_t pieces_done, std::int64_t pieces)>;

namespace detail {

struct packed_header {
  char magic[8];
  std::uint64_t header_checksum;  ///< of all bytes before the first piece, with zeros in the place of this
  std::uint32_t version;
  std::uint32_t layers, experts;
  std::uint32_t format_bytes;
  std::uint64_t piece_bytes;
  std::uint64_t first_piece;  ///< bytes from the file's begin
  std::uint64_t file_bytes;
};
static_assert(sizeof(packed_header) == 56 && std::endian::native == std::endian::little,
              "switchyard: packed files are little-endian, and are read as they stand");
inline constexpr char packed_magic[8] = {'s', 'w', 'y', 'p', 'a', 'c', 'k', '\n'};
inline constexpr std::uint32_t packed_version = 1;
// Far more than any model has: a damaged number shall not ask for all memory.
inline constexpr std::uint64_t most_pieces = std::uint64_t{1} << 24, most_piece_bytes = std::uint64_t{1} << 38,
                               most_format_bytes = 4096;

/// Where the checksums begin.
inline std::uint64_t checksums_at(packed_header const& h) { return sizeof h + (h.format_bytes + 7u) / 8 * 8; }
/// Where the pieces begin and end, as the numbers of a header have it.
inline std::uint64_t first_piece_of(packed_header const& h) {
  std::uint64_t const end = checksums_at(h) + std::uint64_t{8} * h.layers * h.experts;
  return static_cast<std::uint64_t>(place_bytes(static_cast<std::int64_t>(end)));
}
inline std::uint64_t end_of(packed_header const& h) {
  return h.first_piece + std::uint64_t{h.layers} * h.experts *
                             static_cast<std::uint64_t>(place_bytes(static_cast<std::int64_t>(h.piece_bytes)));
}
inline bool is_possible(packed_header const& h) {
  return h.layers > 0 && h.experts > 0 && std::uint64_t{h.layers} * h.experts <= most_pieces && h.piece_bytes > 0 &&
         h.piece_bytes <= most_piece_bytes && h.format_bytes <= most_format_bytes;
}

/// All bytes before the first piece.
inline block_memory bytes_of_header(packed_header h, std::string const& format,
                                    std::vector<std::uint64_t> const& checksums) {
  auto const size = static_cast<std::int64_t>(h.first_piece);
  block_memory bytes = take_blocks(size);
  std::memset(bytes.get(), 0, static_cast<std::size_t>(size));
  h.header_checksum = 0;
  std::memcpy(bytes.get(), &h, sizeof h);
  std::memcpy(bytes.get() + sizeof h, format.data(), format.size());
  std::memcpy(bytes.get() + checksums_at(h), checksums.data(), checksums.size() * 8);
  h.header_checksum = checksum(bytes.get(), size);
  std::memcpy(bytes.get(), &h, sizeof h);
  return bytes;
}

/// Reads so many bytes of a file, or what there is of them. Whether that could be done.
inline bool read_all(int file, std::int64_t offset, std::byte* to, std::int64_t bytes) {
  for (std::int64_t done = 0; done < bytes;) {
    ssize_t const got =
        ::pread(file, to + done, static_cast<std::size_t>(bytes - done), static_cast<off_t>(offset + done));
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) return false;
    done += got;
  }
  return true;
}
inline bool write_all(int file, std::int64_t offset, std::byte const* from, std::int64_t bytes) {
  for (std::int64_t done = 0; done < bytes;) {
    ssize_t const put =
        ::pwrite(file, from + done, static_cast<std::size_t>(bytes - done), static_cast<off_t>(offset + done));
    if (put < 0 && errno == EINTR) continue;
    if (put < 0) return false;
    done += put;
  }
  return true;
}

/// A file that is written beside its place, and takes it when it is whole. What goes wrong leaves the place as it was, and nothing beside it.
class file_beside {
 public:
  file_beside(std::string place, std::int64_t bytes)
      : place_(std::move(place)),
        beside_(place_ + ".part"),
        what_("offload::pack, " + in_quotes(place_)),
        bytes_(bytes) {
    struct stat of;
    if (::stat(place_.c_str(), &of) == 0 && !S_ISREG(of.st_mode)) {
      fail(what_, "the name of a file", S_ISDIR(of.st_mode) ? "a folder" : "something that is no ordinary file");
    }
    file_ = open_path(beside_, O_RDWR | O_CREAT, 0666);
    if (!file_) {
      fail(what_, "a folder that takes files",
           system_says(errno) + " (" + in_quotes(beside_) + "). Make the folder, or give another one");
    }
    // Who holds the lock of a file that has taken its place meanwhile holds that of a finished one.
    struct stat mine, there;
    if (::flock(file_.number(), LOCK_EX | LOCK_NB) != 0 || ::fstat(file_.number(), &mine) != 0 ||
        ::stat(beside_.c_str(), &there) != 0 || mine.st_ino != there.st_ino || mine.st_dev != there.st_dev) {
      fail(what_, "nobody else who writes this file",
           "another one who does (" + in_quotes(beside_) + "). Wait, or give another name");
    }
    mine_ = true;
#if defined(O_DIRECT)
    if (!is_in_memory(file_.number())) direct_ = open_path(beside_, O_WRONLY | O_DIRECT);
#endif
  }
  file_beside(file_beside const&) = delete;
  file_beside& operator=(file_beside const&) = delete;
  ~file_beside() {
    if (mine_) ::unlink(beside_.c_str());
  }

  /// A disk that has no room says so before hours of writing.
  void take_room() {
    if (::ftruncate(file_.number(), 0) != 0) refuse();
    struct statvfs of;
    if (::fstatvfs(file_.number(), &of) == 0) {
      auto const free = static_cast<std::uint64_t>(of.f_bavail) * of.f_frsize;
      if (free < static_cast<std::uint64_t>(bytes_)) {
        fail(what_, room(),
             "a disk with " + std::to_string(free) + " that are free. Make room, or give another folder");
      }
    }
#if defined(__linux__)
    int failed;
    do {
      failed = ::fallocate(file_.number(), 0, 0, static_cast<off_t>(bytes_)) != 0 ? errno : 0;
    } while (failed == EINTR);
    errno = failed;
    if (failed == ENOSPC || failed == EFBIG || failed == EDQUOT) refuse();
#endif
  }
  /// Writes whole blocks of `block_memory`.
  void write(std::int64_t offset, std::byte const* from, std::int64_t bytes) {
    // Past the page cache, which some file systems refuse here.
    if (direct_ && write_all(direct_.number(), offset, from, bytes)) return;
    if (direct_ && errno != EINVAL) refuse();
    direct_ = descriptor();
    if (!write_all(file_.number(), offset, from, bytes)) refuse();
  }
  /// The disk has all bytes, then the file takes its place.
  void finish() {
    if (::fsync(file_.number()) != 0) refuse();
#if defined(POSIX_FADV_DONTNEED)
    ::posix_fadvise(file_.number(), 0, 0, POSIX_FADV_DONTNEED);
#endif
    if (::rename(beside_.c_str(), place_.c_str()) != 0) refuse();
    mine_ = false;
    std::size_t const folder = place_.rfind('/');
    // Some file systems cannot wait for a folder, and the file is there anyway.
    if (descriptor const d = open_path(folder == place_.npos ? "." : place_.substr(0, folder + 1), O_RDONLY)) {
      ::fsync(d.number());
    }
  }

 private:
  std::string room() const { return "room for " + std::to_string(bytes_) + " bytes"; }
  [[noreturn]] void refuse() {
    int const error = errno;
    bool const full = error == ENOSPC || error == EFBIG || error == EDQUOT;
    fail(what_, full ? room() : "a file that can be written",
         system_says(error) + (full ? ". Make room, or give another folder" : ""));
  }

  std::string place_, beside_, what_;
  std::int64_t bytes_;
  descriptor file_, direct_;
  bool mine_ = false;
};

struct packed_contents {
  packed_header header;
  std::string format;
  std::vector<std::uint64_t> checksums;
};

/// Reads a header, and throws what is wrong with it, or with the size of the file.
inline packed_contents read_packed_header(std::string const& path) {
  constexpr char const* what = "offload::open_packed";
  open_file const file = open_to_read(what, path, false);
  auto const size = static_cast<std::uint64_t>(file.bytes);
  auto const refuse = [&](std::string const& expected, std::string const& got) {
    fail(what, expected, in_quotes(path) + ", " + got);
  };
  auto const number = [](std::uint64_t n) { return std::to_string(n); };
  char const* const a_file = "a file that offload::pack wrote";
  char const* const again = ". Fetch or pack it again";

  packed_contents result;
  packed_header& h = result.header;
  if (size < sizeof h) refuse(a_file, "which has " + number(size) + " bytes, too few for one");
  auto const get = [&](std::uint64_t offset, void* to, std::uint64_t bytes) {
    if (!read_all(file.file.number(), static_cast<std::int64_t>(offset), static_cast<std::byte*>(to),
                  static_cast<std::int64_t>(bytes))) {
      refuse("a file that can be read", "whose header cannot: " + system_says(errno));
    }
  };
  get(0, &h, sizeof h);
  if (std::memcmp(h.magic, packed_magic, sizeof packed_magic) != 0) {
    refuse(a_file, "which begins otherwise. A checkpoint is opened by offload::open_safetensors");
  }
  if (h.version != packed_version) {
    refuse("version " + number(packed_version) + " of packed files",
           "of version " + number(h.version) + ". Pack it again with this version of the library");
  }
  if (!is_possible(h) || h.first_piece != first_piece_of(h) || h.file_bytes != end_of(h)) {
    refuse(a_file, std::string("whose header is damaged: its sizes do not fit each other") + again);
  }
  if (size != h.file_bytes) {
    refuse(number(h.file_bytes) + " bytes, as its header has it",
           size < h.file_bytes ? "which ends at byte " + number(size) + ": it was cut, or is still being copied" + again
                               : "which has " + number(size) + ": something was written behind it" + again);
  }
  std::vector<std::byte> bytes(static_cast<std::size_t>(h.first_piece));
  get(0, bytes.data(), h.first_piece);
  std::uint64_t const expected = std::exchange(h.header_checksum, 0);
  std::memcpy(bytes.data(), &h, sizeof h);
  if (checksum(bytes.data(), static_cast<std::int64_t>(bytes.size())) != expected) {
    refuse(a_file, std::string("whose header is damaged: it has another checksum than was written") + again);
  }
  result.format.assign(reinterpret_cast<char const*>(bytes.data()) + sizeof h, h.format_bytes);
  result.checksums.resize(std::size_t{h.layers} * h.experts);
  std::memcpy(result.checksums.data(), bytes.data() + checksums_at(h), result.checksums.size() * 8);
  return result;
}

}  // namespace detail

/// Writes all pieces of a store into a file of our own. It is written beside `path`, to `path + ".part"`, and takes its place when the disk has
/// it, so that `path` never names half a file. Returns whether it is there: false where `progress` stopped it. Throws what goes wrong, with
/// nothing left behind: a store that cannot be read, a disk without room, which is seen at the beginning.
///
/// Packing weights of resident layers: `pack(path, weights_store<Layer>(weights))`; a checkpoint:
/// `pack(path, open_safetensors<Layer>(folder, names))`.
template <expert_store Store>
bool pack(std::string const& path, Store&& from, pack_progress const& progress = {}) {
  std::string format;
  if constexpr (requires { from.format(); }) format = from.format();
  std::int64_t const bytes = from.piece_bytes(), room = place_bytes(bytes);
  detail::packed_header h{};
  std::memcpy(h.magic, detail::packed_magic, sizeof h.magic);
  h.version = detail::packed_version;
  h.layers = static_cast<std::uint32_t>(from.layers());
  h.experts = static_cast<std::uint32_t>(from.experts());
  h.format_bytes = static_cast<std::uint32_t>(format.size());
  h.piece_bytes = static_cast<std::uint64_t>(bytes);
  if (!detail::is_possible(h)) {
    fail("offload::pack, sizes",
         "1 to " + std::to_string(detail::most_pieces) + " pieces of 1 to " + std::to_string(detail::most_piece_bytes) +
             " bytes, and a format of at most " + std::to_string(detail::most_format_bytes),
         std::to_string(from.layers()) + " layers of " + std::to_string(from.experts()) + " experts of " +
             std::to_string(bytes) + " bytes, and a format of " + std::to_string(format.size()));
  }
  h.first_piece = detail::first_piece_of(h);
  h.file_bytes = detail::end_of(h);

  detail::file_beside file(path, static_cast<std::int64_t>(h.file_bytes));
  file.take_room();
  block_memory const place = take_blocks(bytes);
  std::vector<std::uint64_t> checksums;
  std::int64_t const pieces = std::int64_t{from.layers()} * from.experts();
  for (std::int64_t i = 0; i < pieces; ++i) {
    int const layer = static_cast<int>(i / from.experts()), expert = static_cast<int>(i % from.experts());
    std::string const wrong = from.read(layer, expert, place.get());
    if (!wrong.empty()) fail("offload::pack, " + detail::in_quotes(path), "a store that can be read", wrong);
    std::memset(place.get() + bytes, 0, static_cast<std::size_t>(room - bytes));
    checksums.push_back(checksum(place.get(), bytes));
    file.write(static_cast<std::int64_t>(h.first_piece) + i * room, place.get(), room);
    if (progress && !progress(i + 1, pieces)) return false;
  }
  file.write(0, detail::bytes_of_header(h, format, checksums).get(), static_cast<std::int64_t>(h.first_piece));
  file.finish();
  return true;
}

/// Opens a file that `pack` wrote. Its header is checked, and its size; its pieces are by `.verify_reads`, and by `verify`. Throws what is
/// wrong with it.
inline file_store open_packed(std::string const& path, file_options const& options = {}) {
  detail::packed_contents contents = detail::read_packed_header(path);
  detail::packed_header const& h = contents.header;
  auto const piece_bytes = static_cast<std::int64_t>(h.piece_bytes);
  file_store_args args{.files = {path},
                       .layers = static_cast<int>(h.layers),
                       .experts = static_cast<int>(h.experts),
                       .piece_bytes = piece_bytes,
                       .pieces = {},
                       .checksums = std::move(contents.checksums),
                       .format = std::move(contents.format),
                       .options = options};
  for (std::size_t i = 0; i < args.checksums.size(); ++i) {
    std::int64_t const offset =
        static_cast<std::int64_t>(h.first_piece) + static_cast<std::int64_t>(i) * place_bytes(piece_bytes);
    args.pieces.push_back({{.file = 0, .offset = offset, .bytes = piece_bytes, .at = 0}});
  }
  return file_store(std::move(args));
}

/// The same for layers of one type: throws where the file was packed for another one.
template <class Layer>
file_store open_packed(std::string const& path, file_options const& options = {}) {
  file_store store = open_packed(path, options);
  std::string const expected(piece<Layer>::format());
  if (store.piece_bytes() != piece<Layer>::bytes || (!store.format().empty() && store.format() != expected)) {
    fail("offload::open_packed", "pieces of " + expected,
         detail::in_quotes(path) + ", with pieces of " +
             (store.format().empty() ? std::to_string(store.piece_bytes()) + " bytes" : std::string(store.format())) +
             ". Take the layer that it was packed for, or pack it for this one");
  }
  if (store.experts() != Layer::dims.experts) {
    fail("offload::open_packed", std::to_string(Layer::dims.experts) + " experts of each layer",
         detail::in_quotes(path) + ", with " + std::to_string(store.experts()));
  }
  return store;
}

/// Reads a whole file that `pack` wrote, and compares the checksum of every piece. Returns a sentence for each that is damaged or cannot be
/// read, none where all is well; throws where the header is wrong. `progress` stops it, too.
inline std::vector<std::string> verify(std::string const& path, pack_progress const& progress = {}) {
  file_store store = open_packed(path);
  block_memory const place = take_blocks(store.piece_bytes());
  std::vector<std::string> result;
  std::int64_t const pieces = std::int64_t{store.layers()} * store.experts();
  for (std::int64_t i = 0; i < pieces; ++i) {
    int const layer = static_cast<int>(i / store.experts()), expert = static_cast<int>(i % store.experts());
    std::string wrong = store.read(layer, expert, place.get());
    if (wrong.empty()) wrong = store.compare(layer, expert, place.get());
    if (!wrong.empty()) result.push_back(std::move(wrong));
    if (progress && !progress(i + 1, pieces)) break;
  }
  return result;
}

}  // namespace switchyard::offload
