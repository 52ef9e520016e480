// A group that outlives its connections, and a log of what it was asked to do.
//
// MLX is handed `Site`s, one for each line of Python that calls a collective; all of them forward
// to one `Group`, whose `Link` (MLX's own group with its sockets) can be broken off and replaced.
#pragma once

#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <limits>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "mlx/array.h"
#include "mlx/backend/cpu/encoder.h"
#include "mlx/distributed/distributed.h"
#include "mlx/distributed/distributed_impl.h"
#include "mlx/scheduler.h"
#include "mlx/stream.h"

namespace bench {

namespace mx = mlx::core;
using mx::distributed::detail::GroupImpl;

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
    uint64_t first = next_ - records_.size();
    number = std::min(std::max(number, first), next_);
    return {number, {records_.begin() + (number - first), records_.end()}};
  }

 private:
  mutable std::mutex mutex_;
  std::deque<Record> records_;
  uint64_t next_{0};
};

inline Log& log() {
  static auto* log = new Log;  // stream threads may still use it while the process ends
  return *log;
}

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

class Group : public std::enable_shared_from_this<Group> {
 public:
  Group(std::string name, std::shared_ptr<Link> link)
      : name_(std::move(name)), link_(std::move(link)) {}

  std::shared_ptr<GroupImpl> inner() const {
    std::lock_guard lock(mutex_);
    return link_->inner;
  }

  // Goes on with another link, of which nothing has happened yet.
  void replace(std::shared_ptr<Link> link) {
    std::lock_guard lock(mutex_);
    link_.swap(link);
    links_++;
    whole_ = chain_ = 0;
    peers_.clear();
    limits_ = {};
    refused_ = false;
  }

  // Lets all through again, unless something was broken off, or, when not forced, refused.
  void lift(bool force) {
    std::lock_guard lock(mutex_);
    std::lock_guard inside(link_->mutex);
    if ((force || !refused_) && !link_->broken) {
      limits_ = {};
      refused_ = false;
    }
  }

  // Nothing is being evaluated: what may have been running has ended.
  void rest() {
    std::lock_guard lock(mutex_);
    std::lock_guard inside(link_->mutex);
    if (!link_->certain) {
      link_->running.reset();
    }
  }

  // Frees the collective that runs, when it is beyond the limits.
  void limit(Limits limits) {
    std::shared_ptr<Link> link;
    {
      std::lock_guard lock(mutex_);
      limits_ = std::move(limits);
      link = link_;
      std::lock_guard inside(link->mutex);
      if (!link->running || limits_.allow(*link->running)) {
        return;
      }
    }
    link->break_off(limits_.reason);
  }

  // Frees whatever runs.
  void release(const std::string& reason) {
    std::shared_ptr<Link> link;
    {
      std::lock_guard lock(mutex_);
      limits_ = {0, {}, reason};
      link = link_;
    }
    link->break_off(reason);
  }

  // Refuses all but sends and receives among these ranks; an empty set lets all through.
  void only(std::set<int> ranks, std::string reason) {
    std::lock_guard lock(mutex_);
    there_ = std::move(ranks);
    absent_ = std::move(reason);
  }

  // Lets MLX's threads end what they have, and drops the errors that they keep for the next one
  // who asks. Only for a group that was broken off, with nothing being evaluated.
  void flush() {
    std::set<mx::Stream> streams;
    {
      std::lock_guard lock(mutex_);
      streams = streams_;
    }
    for (auto& stream : streams) {
      try {
        mx::synchronize(stream);
      } catch (const std::exception&) {
        // What was raised already where it was waited for.
      }
    }
  }

  Progress progress() const {
    std::lock_guard lock(mutex_);
    std::lock_guard inside(link_->mutex);
    return {
        links_,
        whole_,
        peers_,
        chain_,
        limits_.whole != Limits::NONE,
        refused_,
        link_->broken ? link_->reason : "",
        link_->running,
        link_->record,
        link_->since,
        link_->certain};
  }

  // Has MLX's group do something on a stream. `call` is given that group, the arrays and the
  // stream; the arrays are MLX's own, or stand for them on the lane.
  template <typename Call>
  void run(
      const char* operation,
      int peer,
      const mx::array* input,
      mx::array* output,
      const std::string& line,
      mx::Stream stream,
      Call call) {
    auto [turn, number, link] = admit(operation, peer, input ? *input : *output, line, stream);
    if (stream.device != mx::Device::cpu) {
      {
        std::lock_guard lock(link->mutex);
        link->running = turn;
        link->record = number;
        link->since = now();
        link->certain = false;
      }
      call(*link->inner, input, output, stream);
      return;
    }
    auto& encoder = mx::cpu::get_command_encoder(stream);
    auto self = shared_from_this();
    if (!link->lane) {
      encoder.dispatch([self, turn, number, link] { self->begin(turn, number, *link); });
      auto end = [self, number, link] { self->end(number, *link); };
      try {
        call(*link->inner, input, output, stream);
      } catch (...) {  // the backend has no such operation
        encoder.dispatch(end);
        throw;
      }
      encoder.dispatch(end);
      return;
    }
    // A copy of an array's handle would keep MLX from using its memory again.
    std::optional<mx::array> from, to;
    if (input) {
      from = mx::array::unsafe_weak_copy(*input);
    }
    if (output) {
      to = mx::array::unsafe_weak_copy(*output);
    }
    encoder.dispatch([=]() mutable {
      self->begin(turn, number, *link);
      auto finished = std::make_shared<std::atomic<bool>>(false);
      auto turns = ++link->given;
      try {
        call(*link->inner, from ? &*from : nullptr, to ? &*to : nullptr, *link->lane);
      } catch (...) {  // the backend has no such operation
        self->end(number, *link);
        throw;
      }
      mx::scheduler::enqueue(*link->lane, [link, finished, turns] {
        {
          std::lock_guard lock(link->mutex);
          *finished = true;
          link->stuck = false;
          link->changed.notify_all();
        }
        look_for([&] { return link->given != turns; });
      });
      look_for([&] { return finished->load(); });
      {
        std::unique_lock lock(link->mutex);
        link->changed.wait(lock, [&] { return *finished || link->broken; });
        if (!*finished) {
          // MLX must not write into memory that is used for something else.
          link->stuck = !link->changed.wait_for(
              lock, std::chrono::milliseconds(500), [&] { return finished->load(); });
        }
      }
      if (*finished) {
        try {
          mx::scheduler::check_error(*link->lane);
        } catch (const std::exception& error) {
          link->break_off(error.what());  // its own reason, unless there was one before
        }
      }
      self->end(number, *link);
    });
  }

 private:
  struct Admitted {
    Turn turn;
    uint64_t number;
    std::shared_ptr<Link> link;
  };

  // Refuses what would not end. Nothing has happened to the arrays then: they can be evaluated
  // later (mlx/transforms.cpp, eval_impl).
  Admitted admit(
      const char* operation,
      int peer,
      const mx::array& shown,
      const std::string& line,
      mx::Stream stream) {
    std::lock_guard lock(mutex_);
    Turn turn{operation, peer, whole_};
    if (peer >= 0) {
      auto& [sends, receives] = peers_[peer];
      turn.number = turn.sends() ? sends : receives;
    }
    if (!limits_.allow(turn)) {
      refused_ = true;
      throw std::runtime_error(limits_.reason);
    }
    if (!there_.empty() && (peer < 0 || !there_.count(peer))) {
      throw std::runtime_error(absent_ + operation + (line.empty() ? "" : " in " + line));
    }
    if (stream.device == mx::Device::cpu) {
      streams_.insert(stream);
    }
    if (peer < 0) {
      whole_++;
      lengthen_chain(operation, shown);
    } else {
      auto& [sends, receives] = peers_[peer];
      (turn.sends() ? sends : receives)++;
    }
    bool known = stream.device == mx::Device::cpu;
    auto number = log().add(
        {turn, links_, shown.shape(), shown.dtype(), name_, line, chain_, now(), 0, known ? 0.0 : -1.0});
    return {turn, number, link_};
  }

  void begin(const Turn& turn, uint64_t number, Link& link) {
    {
      std::lock_guard lock(mutex_);
      if (!limits_.allow(turn) && link_.get() == &link) {
        refused_ = true;
        throw std::runtime_error(limits_.reason);
      }
    }
    double start = now();
    {
      std::lock_guard lock(link.mutex);
      if (link.broken) {
        throw std::runtime_error(link.reason);
      }
      link.running = turn;
      link.record = number;
      link.since = start;
    }
    log().change(number, [start](Record& record) { record.begun = start; });
  }

  void end(uint64_t number, Link& link) {
    std::lock_guard lock(link.mutex);
    link.running.reset();
    if (link.broken) {
      throw std::runtime_error(link.reason);
    }
    log().change(number, [](Record& record) { record.done = now(); });
  }

  void lengthen_chain(const char* operation, const mx::array& shown) {
    auto mix = [this](uint64_t value) { chain_ = (chain_ ^ value) * 0x100000001b3; };  // FNV-1a
    for (auto letter = operation; *letter; letter++) {
      mix(static_cast<uint64_t>(*letter));
    }
    mix(static_cast<uint64_t>(shown.dtype().val()));
    for (auto extent : shown.shape()) {
      mix(static_cast<uint64_t>(extent));
    }
    mix(shown.ndim() + 1);
  }

  const std::string name_;
  mutable std::mutex mutex_;
  std::shared_ptr<Link> link_;
  int links_{0};
  uint64_t whole_{0}, chain_{0};
  std::map<int, std::pair<uint64_t, uint64_t>> peers_;
  Limits limits_;
  bool refused_{false};
  std::set<mx::Stream> streams_;  // on which MLX waits for this group
  std::set<int> there_;
  std::string absent_;
};

// What MLX takes for a group: the same one, as it is named in one line of Python.
class Site : public GroupImpl {
 public:
  Site(std::shared_ptr<Group> group, std::string line)
      : group(std::move(group)), line(std::move(line)) {}

  const std::shared_ptr<Group> group;
  const std::string line;

  mx::Stream communication_stream(mx::StreamOrDevice s) override {
    return group->inner()->communication_stream(s);
  }

  int rank() override {
    return group->inner()->rank();
  }

  int size() override {
    return group->inner()->size();
  }

  std::shared_ptr<GroupImpl> split(int color, int key) override {
    auto part = group->inner()->split(color, key);
    auto link = std::make_shared<Link>(std::move(part), std::vector<int>{}, false);
    auto name = "split " + std::to_string(color);
    return std::make_shared<Site>(std::make_shared<Group>(name, std::move(link)), line);
  }

  void all_sum(const mx::array& in, mx::array& out, mx::Stream s) override {
    run("all_sum", -1, &in, &out, s, [](auto& g, auto* i, auto* o, auto on) { g.all_sum(*i, *o, on); });
  }

  void all_max(const mx::array& in, mx::array& out, mx::Stream s) override {
    run("all_max", -1, &in, &out, s, [](auto& g, auto* i, auto* o, auto on) { g.all_max(*i, *o, on); });
  }

  void all_min(const mx::array& in, mx::array& out, mx::Stream s) override {
    run("all_min", -1, &in, &out, s, [](auto& g, auto* i, auto* o, auto on) { g.all_min(*i, *o, on); });
  }

  void all_gather(const mx::array& in, mx::array& out, mx::Stream s) override {
    run("all_gather", -1, &in, &out, s,
        [](auto& g, auto* i, auto* o, auto on) { g.all_gather(*i, *o, on); });
  }

  void sum_scatter(const mx::array& in, mx::array& out, mx::Stream s) override {
    run("sum_scatter", -1, &in, &out, s,
        [](auto& g, auto* i, auto* o, auto on) { g.sum_scatter(*i, *o, on); });
  }

  void send(const mx::array& in, int peer, mx::Stream s) override {
    run("send", peer, &in, nullptr, s,
        [peer](auto& g, auto* i, auto*, auto on) { g.send(*i, peer, on); });
  }

  void recv(mx::array& out, int peer, mx::Stream s) override {
    run("recv", peer, nullptr, &out, s,
        [peer](auto& g, auto*, auto* o, auto on) { g.recv(*o, peer, on); });
  }

 private:
  template <typename Call>
  void run(
      const char* operation,
      int peer,
      const mx::array* input,
      mx::array* output,
      mx::Stream stream,
      Call call) {
    group->run(operation, peer, input, output, line, stream, call);
  }
};

}  // namespace bench
