"""Roles are read from the networks that are there."""

from dataclasses import dataclass

import pytest
from torch import nn

from fewstep.learning.roles import Roles, frozen, moved, networks, roles_of, trained


@dataclass
class Nets:
    student: nn.Module = trained(exported=True)
    head: nn.Module | None = trained()
    encoder: nn.Module = trained(exported=True)
    target: nn.Module | None = moved()
    teacher: nn.Module = frozen(twin=True)


def five(**absent):
    names = ("student", "head", "encoder", "target", "teacher")
    return Nets(**{name: nn.Linear(1, 1) for name in names} | absent)


def test_each_network_has_the_role_that_stands_beside_it():
    assert roles_of(five()) == Roles(
        ("student", "head", "encoder"), ("target",), ("student", "encoder"), ("teacher",)
    )


def test_a_network_that_is_absent_has_no_role():
    nets = five(head=None, target=None)
    assert roles_of(nets) == Roles(("student", "encoder"), (), ("student", "encoder"), ("teacher",))
    assert list(networks(nets)) == ["student", "encoder", "teacher"]
    assert networks(nets)["teacher"] is nets.teacher


def test_every_network_must_be_handed_over():
    with pytest.raises(TypeError, match="teacher"):
        Nets(nn.Linear(1, 1), None, nn.Linear(1, 1), None)


def test_a_network_without_a_role_is_refused():
    @dataclass
    class Forgotten:
        student: nn.Module

    with pytest.raises(AssertionError, match=r"student: trained\(\), moved\(\) or frozen\(\)"):
        roles_of(Forgotten(nn.Linear(1, 1)))
