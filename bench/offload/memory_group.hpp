#pragma once

#include <fcntl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <string>
#include <system_error>
#include <vector>

/// A process of its own whose memory, page cache included, is limited: how the system's paging is measured at a budget.
namespace switchyard::bench {

/// A memory group (cgroup, version 1) below the one that this process is in, so that it takes nothing from anybody else's limits; gone
/// when this goes. Only a child process joins it.
class memory_group {
 public:
  /// Makes none where it is not wanted.
  explicit memory_group(bool wanted) {
    if (!wanted) return;
    std::ifstream groups("/proc/self/cgroup");
    for (std::string line; std::getline(groups, line);) {
      std::size_t const at = line.find(":memory:");
      if (at == std::string::npos) continue;
      std::string const parent = "/sys/fs/cgroup/memory" + line.substr(at + 8);
      folder_ = parent + "/switchyard_offload_bench." + std::to_string(::getpid());
      if (::mkdir(folder_.c_str(), 0755) == 0) return;
      why_not_ = folder_ + ": " + std::generic_category().message(errno);
      folder_.clear();
      return;
    }
    why_not_ = "this process is in no memory group of version 1 (/proc/self/cgroup)";
  }
  memory_group(memory_group const&) = delete;
  ~memory_group() {
    for (int i = 0; !folder_.empty() && ::rmdir(folder_.c_str()) != 0 && i < 100; ++i) ::usleep(10000);
  }

  /// Empty where there is none, and then `why_not` is why.
  std::string const& folder() const { return folder_; }
  std::string const& why_not() const { return why_not_; }

 private:
  std::string folder_, why_not_;
};

/// Joins the group, as the child.
inline bool join(std::string const& group) {
  return static_cast<bool>(std::ofstream(group + "/cgroup.procs") << ::getpid());
}
inline std::int64_t used_bytes(std::string const& group) {
  std::int64_t bytes = 0;
  std::ifstream(group + "/memory.usage_in_bytes") >> bytes;
  return bytes;
}
inline bool limit(std::string const& group, std::int64_t bytes) {
  return static_cast<bool>(std::ofstream(group + "/memory.limit_in_bytes") << bytes << std::flush);
}

/// Bytes that this process had read from disks, by faults of mapped memory, too; -1 where the system does not tell.
inline std::int64_t bytes_read_from_disk() {
  std::ifstream in("/proc/self/io");
  std::int64_t bytes = -1;
  for (std::string name; in >> name && name != "read_bytes:";) in.ignore(64, '\n');
  in >> bytes;
  return bytes;
}

/// What this program prints when it is run anew with other arguments; empty where it fails.
inline std::string output_of_child(std::vector<std::string> const& arguments) {
  int ends[2];
  if (::pipe(ends) != 0) return {};
  std::vector<char*> argv{const_cast<char*>("offload_bench")};
  for (std::string const& a : arguments) argv.push_back(const_cast<char*>(a.c_str()));
  argv.push_back(nullptr);
  pid_t const child = ::fork();
  if (child == 0) {
    ::dup2(ends[1], 1);
    ::close(ends[0]);
    ::close(ends[1]);
    ::execv("/proc/self/exe", argv.data());
    ::_exit(127);
  }
  ::close(ends[1]);
  std::string text;
  char part[256];
  for (ssize_t got; (got = ::read(ends[0], part, sizeof part)) > 0 || (got < 0 && errno == EINTR);) {
    if (got > 0) text.append(part, static_cast<std::size_t>(got));
  }
  ::close(ends[0]);
  int status = 1;
  if (child > 0) ::waitpid(child, &status, 0);
  return status == 0 ? text : std::string();
}

}  // namespace switchyard::bench
