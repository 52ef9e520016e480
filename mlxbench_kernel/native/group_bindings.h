// Lasting groups and the log of collectives, as Python has them.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/stl/map.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/set.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <memory>
#include <optional>
#include <stdexcept>
#include <utility>
#include <vector>

#include "group.h"

namespace bench {

namespace nb = nanobind;
namespace dist = mlx::core::distributed;

inline Group& group_of(const dist::Group& group) {
  auto site = dynamic_cast<Site*>(group.raw_group().get());
  if (!site) {
    throw std::invalid_argument("not a group that was made by `lasting`");
  }
  return *site->group;
}

inline std::shared_ptr<Link> link_of(
    const dist::Group& raw, const std::vector<int>& sockets, bool on_lane) {
  return std::make_shared<Link>(raw.raw_group(), sockets, on_lane);
}

inline nb::object as_tuple(const std::optional<Turn>& turn) {
  if (!turn) {
    return nb::none();
  }
  return nb::make_tuple(turn->operation, turn->peer, turn->number);
}

inline nb::tuple as_tuple(const mx::Shape& shape) {
  nb::list extents;
  for (auto extent : shape) {
    extents.append(extent);
  }
  return nb::tuple(extents);
}

inline nb::dict progress(const dist::Group& group) {
  auto now = group_of(group).progress();
  nb::dict said;
  said["link"] = now.link;
  said["whole"] = now.whole;
  said["peers"] = now.peers;
  said["chain"] = now.chain;
  said["limited"] = now.limited;
  said["refused"] = now.refused;
  said["broken"] = now.broken;
  said["running"] = as_tuple(now.running);
  if (auto record = now.running ? log().at(now.record) : std::nullopt) {
    said["shape"] = as_tuple(record->shape);
    said["dtype"] = record->dtype;
    said["line"] = record->line;
  }
  said["certain"] = now.certain;
  said["since"] = now.since;
  return said;
}

inline nb::tuple collectives(uint64_t since) {
  auto [first, records] = log().since(since);
  nb::list rows;
  for (auto& record : records) {
    rows.append(nb::make_tuple(
        record.link,
        record.turn.operation,
        record.turn.peer,
        record.turn.number,
        as_tuple(record.shape),
        record.dtype,
        record.group,
        record.line,
        record.chain,
        record.asked,
        record.begun,
        record.done));
  }
  return nb::make_tuple(first, rows);
}

inline void bind_groups(nb::module_& m) {
  m.def(
      "lasting",
      [](const dist::Group& raw, const std::vector<int>& sockets, bool on_lane) {
        auto group = std::make_shared<Group>("", link_of(raw, sockets, on_lane));
        return dist::Group(std::make_shared<Site>(std::move(group), ""));
      },
      nb::arg("raw"),
      nb::arg("sockets"),
      nb::arg("on_lane"),
      "A group that forwards to `raw`, whose sockets (duplicates, owned from now on) are shut to "
      "break it off. `on_lane`: MLX's threads may block in it for ever.");

  m.def(
      "at",
      [](const dist::Group& group, const std::string& line) {
        auto site = std::make_shared<Site>(group_of(group).shared_from_this(), line);
        return dist::Group(std::move(site));
      },
      nb::arg("group"),
      nb::arg("line"),
      "The same group, as it is called from a line of Python.");

  m.def(
      "is_lasting",
      [](const dist::Group& group) {
        return dynamic_cast<Site*>(group.raw_group().get()) != nullptr;
      },
      nb::arg("group"));

  m.def(
      "replace",
      [](const dist::Group& group,
         const dist::Group& raw,
         const std::vector<int>& sockets,
         bool on_lane) {
        nb::gil_scoped_release free;
        group_of(group).replace(link_of(raw, sockets, on_lane));
      },
      nb::arg("group"),
      nb::arg("raw"),
      nb::arg("sockets"),
      nb::arg("on_lane"),
      "Have a lasting group go on with another one of MLX's.");

  m.def(
      "limit",
      [](const dist::Group& group,
         uint64_t whole,
         std::map<int, std::pair<uint64_t, uint64_t>> peers,
         std::string reason) {
        nb::gil_scoped_release free;
        group_of(group).limit({whole, std::move(peers), std::move(reason)});
      },
      nb::arg("group"),
      nb::arg("whole"),
      nb::arg("peers"),
      nb::arg("reason"),
      "Refuse all collectives beyond these numbers, and free one that waits beyond them.");

  m.def(
      "lift",
      [](const dist::Group& group, bool force) {
        nb::gil_scoped_release free;
        group_of(group).lift(force);
      },
      nb::arg("group"),
      nb::arg("force"),
      "Take limits back; those that have refused something only when forced.");

  m.def(
      "rest",
      [](const dist::Group& group) { group_of(group).rest(); },
      nb::arg("group"),
      "Take note that nothing is being evaluated, where MLX does not tell when something ends.");

  m.def(
      "release",
      [](const dist::Group& group, const std::string& reason) {
        nb::gil_scoped_release free;
        group_of(group).release(reason);
      },
      nb::arg("group"),
      nb::arg("reason"),
      "Free what waits in the group, and refuse everything until it is replaced.");

  m.def(
      "only",
      [](const dist::Group& group, std::set<int> ranks, std::string reason) {
        group_of(group).only(std::move(ranks), std::move(reason));
      },
      nb::arg("group"),
      nb::arg("ranks"),
      nb::arg("reason"),
      "Refuse all but sends and receives among these ranks; an empty set lets all through.");

  m.def("progress", &progress, nb::arg("group"), "How far the group has come, as a dict.");

  m.def("is_intact", [](const dist::Group& group) { return group_of(group).is_intact(); });

  m.def("collectives", &collectives, nb::arg("since"), "The log, from a number on.");

  m.def(
      "spent",
      [](uint64_t since) {
        auto spent = log().spent(since);
        return nb::make_tuple(spent.first, spent.count, spent.seconds, spent.known);
      },
      nb::arg("since"),
      "The first number that the log still has of those from this one on, how many there are, the "
      "seconds that they took as far as they have ended, and whether all ends are known.");

  m.def(
      "flush",
      [](const dist::Group& group) {
        nb::gil_scoped_release free;
        group_of(group).flush();
      },
      nb::arg("group"),
      "Drop the errors that MLX keeps of a link that was broken off; nothing may be evaluated.");
}

}  // namespace bench
