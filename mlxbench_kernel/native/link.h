// MLX's own group with its sockets, the thread it runs on, and how many collectives it may do.
#pragma once

#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "collective_log.h"
#include "mlx/backend/cpu/encoder.h"
#include "mlx/distributed/distributed.h"
#include "mlx/distributed/distributed_impl.h"
#include "mlx/scheduler.h"
#include "mlx/stream.h"

namespace bench {

using mx::distributed::detail::GroupImpl;

// Threads for what MLX's ring does. A collective of a broken ring may never end, and nor would
// anything that MLX has queued behind it: so a ring has a thread of its own, which can be left.
class Lanes {
 public:
  mx::Stream take() {
    std::lock_guard lock(mutex_);
    if (free_.empty()) {
      return mx::new_thread_unsafe_stream(mx::Device::cpu);
    }
    auto lane = free_.back();
    free_.pop_back();
    return lane;
  }

  void give_back(mx::Stream lane) {
    std::lock_guard lock(mutex_);
    free_.push_back(lane);
  }

 private:
  std::mutex mutex_;
  std::vector<mx::Stream> free_;
};

inline Lanes& lanes() {
  static auto* lanes = new Lanes;
  return *lanes;
}

// Whether to look again and again for a while before sleeping: being woken takes longer than a
// short collective does. MLX's ring does so too, for as long as it waits.
inline bool cores_to_spare() {
  static const bool spare = std::thread::hardware_concurrency() >= 8;
  return spare;
}

template <typename Condition>
void look_for(Condition&& condition) {
  auto end = std::chrono::steady_clock::now() + std::chrono::microseconds(100);
  while (cores_to_spare() && !condition() && std::chrono::steady_clock::now() < end) {
    std::this_thread::yield();
  }
}

// MLX's own group, with what it takes to break it off.
struct Link {
  const std::shared_ptr<GroupImpl> inner;
  const std::vector<int> sockets;  // duplicates of MLX's, so that no number is used again
  const std::optional<mx::Stream> lane;
  std::atomic<uint64_t> given{0};  // collectives that the lane has been given

  std::mutex mutex;
  std::condition_variable changed;
  bool broken{false};
  std::string reason;
  std::optional<Turn> running;
  uint64_t record{0};  // of what runs, in the log
  double since{0};
  bool certain{true};  // false: it was asked for last, and may have ended
  bool stuck{false};  // MLX has not come back, although its sockets are shut

  Link(std::shared_ptr<GroupImpl> group, std::vector<int> fds, bool on_lane)
      : inner(std::move(group)),
        sockets(std::move(fds)),
        lane(on_lane ? std::optional(lanes().take()) : std::nullopt) {}

  ~Link() {
    if (stuck) {
      new std::shared_ptr<GroupImpl>(inner);  // a thread is inside it: it has to stay
    } else if (lane) {
      lanes().give_back(*lane);
    }
    for (int fd : sockets) {
      close(fd);
    }
  }

  void break_off(const std::string& why) {
    {
      std::lock_guard lock(mutex);
      if (broken) {
        return;
      }
      broken = true;
      reason = why;
    }
    for (int fd : sockets) {
      shutdown(fd, SHUT_RDWR);
    }
    changed.notify_all();
  }
};

// How many collectives of a link may happen: those beyond would wait for ever.
struct Limits {
  static constexpr uint64_t NONE = std::numeric_limits<int64_t>::max();

  uint64_t whole{NONE};
  std::map<int, std::pair<uint64_t, uint64_t>> peers;  // sends to, and receives from
  std::string reason;

  bool allow(const Turn& turn) const {
    if (turn.peer < 0) {
      return turn.number < whole;
    }
    auto found = peers.find(turn.peer);
    if (found == peers.end()) {
      return whole > 0;  // nothing at all is left of a group that was released
    }
    return turn.number < (turn.sends() ? found->second.first : found->second.second);
  }
};

struct Progress {
  int link;
  uint64_t whole;  // collectives that were asked for
  std::map<int, std::pair<uint64_t, uint64_t>> peers;
  uint64_t chain;
  bool limited;
  bool refused;  // whether the limits have refused anything
  std::string broken;  // why; "" when it is not
  std::optional<Turn> running;
  uint64_t record;
  double since;
  bool certain;
};

}  // namespace bench
