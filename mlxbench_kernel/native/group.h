// A group that outlives its connections.
//
// MLX is handed `Site`s, one for each line of Python that calls a collective; all of them forward
// to one `Group`, whose `Link` can be broken off and replaced.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <limits>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <stdexcept>
#include <string>
#include <utility>

#include "link.h"

namespace bench {

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

  // Whether nothing was broken off or refused since the connections were made.
  bool is_intact() const {
    std::lock_guard lock(mutex_);
    std::lock_guard inside(link_->mutex);
    return limits_.whole == Limits::NONE && !link_->broken;
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
