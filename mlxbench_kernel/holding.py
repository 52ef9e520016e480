"""What is held for users: in objects of ours, and in the variables of a rank."""

from __future__ import annotations

# An attribute of such a class: the names of the attributes that hold something of a user's.
HELD = "held_for_users"


# Variables that each rank has from the start, and that cells go by.
OFFERED = ("mx", "nn", "optim", "np", "protect", "rank", "size", "group")


def held_by(value: object) -> dict[str, object]:
    """What an object holds for a user, by name; empty for objects of other classes."""
    return {name: getattr(value, name) for name in vars(type(value)).get(HELD, ())}
