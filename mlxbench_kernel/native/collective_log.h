// What this process's collectives were: which, where they were asked for, and how far they came.
#pragma once

#include <chrono>
#include <cstdint>
#include <deque>
#include <mutex>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "mlx/array.h"

namespace bench {

namespace mx = mlx::core;

inline double now() {
  return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
}

// Which one of a link's collectives: those of the whole group are counted together, sends and
// receives by the other rank. On every rank the same one has the same number.
struct Turn {
  const char* operation;
  int peer;  // -1 for the whole group
  uint64_t number;

  bool sends() const {
    return operation[0] == 's' && operation[1] == 'e';
  }
};

// One collective that MLX has executed, or is about to.
struct Record {
  Turn turn;
  int link;  // which connection, counted from 0
  mx::Shape shape;
  mx::Dtype dtype;
  std::string group;
  std::string line;
  uint64_t chain;  // of all collectives of the whole group on this link, up to this one
  double asked;    // Unix times; when MLX has scheduled it
  double begun;    // 0 until then
  double done;     // 0 until then, -1 where it cannot be known
};

// What is known of the time in collectives, from a number of the log on.
struct Spent {
  uint64_t first;  // the number of the first one that is still in the log
  size_t count;
  double seconds{0};  // of those that have ended, with waiting for other ranks
  bool known{true};   // whether all ends are
};

// The last collectives of this process, in the order in which they were asked for.
class Log {
 public:
  static constexpr size_t LENGTH = 4096;

  uint64_t add(Record record) {
    std::lock_guard lock(mutex_);
    records_.push_back(std::move(record));
    if (records_.size() > LENGTH) {
      records_.pop_front();
    }
    return next_++;
  }

  template <typename F>
  void change(uint64_t number, F change) {
    std::lock_guard lock(mutex_);
    uint64_t first = next_ - records_.size();
    if (number >= first) {
      change(records_[number - first]);
    }
  }

  std::optional<Record> at(uint64_t number) const {
    std::lock_guard lock(mutex_);
    uint64_t first = next_ - records_.size();
    return number < first || number >= next_ ? std::nullopt
                                             : std::optional(records_[number - first]);
  }

  // With the number of the first.
  std::pair<uint64_t, std::vector<Record>> since(uint64_t number) const {
    std::lock_guard lock(mutex_);
    auto from = begin(number);
    return {next_ - (records_.end() - from), {from, records_.end()}};
  }

  Spent spent(uint64_t number) const {
    std::lock_guard lock(mutex_);
    auto record = begin(number);
    size_t count = records_.end() - record;
    Spent spent{next_ - count, count};
    for (; record != records_.end(); ++record) {
      spent.known = spent.known && record->done >= 0;
      spent.seconds += record->done > 0 ? record->done - record->begun : 0;
    }
    return spent;
  }

 private:
  std::deque<Record>::const_iterator begin(uint64_t number) const {
    uint64_t first = next_ - records_.size();
    return records_.begin() + (std::min(std::max(number, first), next_) - first);
  }

  mutable std::mutex mutex_;
  std::deque<Record> records_;
  uint64_t next_{0};
};

inline Log& log() {
  static auto* log = new Log;  // stream threads may still use it while the process ends
  return *log;
}

}  // namespace bench
