"""Rules on --kv-transfer-config itself: keys, role and connector that this vLLM has."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from typing import Any

from epdoctor import compat
from epdoctor.launch.json_options import JsonConfig, json_options, merged
from epdoctor.launch.judge import at_least, server_rule, table, version_of
from epdoctor.launch.model import LaunchSet, Server
from epdoctor.model import Problem, Severity
from epdoctor.rules import need
from epdoctor.rules.launch_backends import connector_of, role_of

NIXL_CONNECTORS = ("NixlConnector", "NixlPullConnector", "NixlPushConnector")


@need("launch-kv-transfer")
def launch_has_kv_transfer(launch: LaunchSet) -> bool:
    """No launch has --kv-transfer-config"""
    return any(any(True for _ in json_options(server, "kv-transfer-config")) for server in launch.servers)


def connectors(config: JsonConfig) -> list[dict[str, Any]]:
    """The connectors of a configuration: itself, or those inside a MultiConnector."""
    values = dict(config.values or {})
    if values.get("kv_connector") != "MultiConnector":
        return [values]
    extra = values.get("kv_connector_extra_config")
    inner = extra.get("connectors") if isinstance(extra, dict) else None
    return [item for item in inner if isinstance(item, dict)] if isinstance(inner, list) else []


@server_rule
def launch_kv_config_valid(launch: LaunchSet, server: Server) -> Iterator[Problem]:
    """--kv-transfer-config is an object of vLLM's keys, with a connector and a role that exist."""
    config = merged(server, "kv-transfer-config")
    if config is None:
        return
    if config.values is None:
        yield Problem(
            found=f"--kv-transfer-config {config.error}",
            expected="""a JSON object in single quotes: '{"kv_connector": "NixlConnector", "kv_role": "kv_consumer"}'""",
            location=config.location,
        )
        return
    keys, removed = table("kv_keys"), table("kv_keys_removed")
    version = version_of(launch, server)
    gone = at_least(version, compat.field("launch", "kv_keys_gone_in", str))
    for key in config.values:
        if key in removed and not gone:
            continue
        if key in removed:
            yield Problem(
                found=f"--kv-transfer-config: key {key!r} is gone from vLLM",
                expected="no such key: vLLM refuses unknown ones",
                location=config.place(key),
            )
        elif key not in keys:
            near = difflib.get_close_matches(key, keys, n=1, cutoff=0.5)
            yield Problem(
                found=f"--kv-transfer-config: no key {key[:60]!r}",
                expected=f"did you mean {near[0]}?" if near else "one of " + ", ".join(keys),
                location=config.place(key),
            )
    yield from _roles(config.values, config)
    for part in connectors(config):
        yield from _connector(part, config, version)
        if config.values.get("kv_connector") == "MultiConnector":
            yield from _roles(part, config)


def _roles(values: Mapping[str, Any], config: JsonConfig) -> Iterator[Problem]:
    role, roles = values.get("kv_role"), table("kv_roles")
    if role is None and values.get("kv_connector") is not None:
        yield Problem(
            found="--kv-transfer-config: kv_connector without kv_role",
            expected="kv_role: " + ", ".join(roles),
            location=config.location,
        )
    elif role is not None and role not in roles:
        near = difflib.get_close_matches(str(role), roles, n=1, cutoff=0.4)
        yield Problem(
            found=f"--kv-transfer-config: kv_role {str(role)[:60]!r}",
            expected=f"did you mean {near[0]}?" if near else "one of " + ", ".join(roles),
            location=config.place("kv_role"),
        )


_NEAR = 0.85
"""Similarity from which a connector's name is taken for a slip of one of vLLM's own."""


def _connector_named(name: str, config: JsonConfig, version: str) -> Iterator[Problem]:
    known = table("kv_connectors")
    removed = {str(row["name"]): row for row in compat.field("launch", "kv_connectors_removed", list)}
    if name in known or name in table("kv_connectors_of_plugins"):
        return
    if name in removed:
        if at_least(version, str(removed[name]["gone_in"])):
            yield Problem(
                found=f"--kv-transfer-config: connector {name} is gone since vLLM {removed[name]['gone_in']}",
                expected=str(removed[name]["instead"]),
                location=config.place("kv_connector"),
            )
        return
    near = difflib.get_close_matches(name, known, n=1, cutoff=_NEAR)
    yield Problem(
        found=f"--kv-transfer-config: vLLM has no connector {name[:60]!r}",
        expected=f"did you mean {near[0]}?"
        if near
        else "one of vLLM's own, kv_connector_module_path, or a plugin that registers it",
        # A plugin may bring any name.
        severity=None if near else Severity.WARNING,
        location=config.place("kv_connector"),
    )


def _connector(values: dict[str, Any], config: JsonConfig, version: str) -> Iterator[Problem]:
    name = values.get("kv_connector")
    if isinstance(name, str) and "kv_connector_module_path" not in values:
        yield from _connector_named(name, config, version)
    extra = values.get("kv_connector_extra_config")
    if extra is not None and not isinstance(extra, dict):
        yield Problem(
            found=f"--kv-transfer-config: kv_connector_extra_config is {str(extra)[:40]!r}",
            expected="an object",
            location=config.place("kv_connector_extra_config"),
        )
        return
    plugins = (extra or {}).get("backends")
    if name not in NIXL_CONNECTORS or plugins is None:
        return
    if not isinstance(plugins, list) or not plugins:
        yield Problem(
            found=f"--kv-transfer-config: backends is {str(plugins)[:40]!r}",
            expected='a list: ["UCX"]',
            location=config.place("kv_connector_extra_config"),
        )
        return
    for plugin in plugins:
        if plugin not in table("nixl_backends"):
            near = difflib.get_close_matches(str(plugin).upper(), table("nixl_backends"), n=1, cutoff=0.4)
            yield Problem(
                found=f"--kv-transfer-config: NIXL has no back end {str(plugin)[:40]!r}",
                expected=f"did you mean {near[0]}?"
                if near
                else "one of " + ", ".join(table("nixl_backends")),
                location=config.place("kv_connector_extra_config"),
            )


@server_rule
def launch_kv_role_current(launch: LaunchSet, server: Server) -> Iterator[Problem]:
    """kv_both with NixlConnector: deprecated, a side can no longer be told by its role."""
    if (
        role_of(server) == "kv_both"
        and connector_of(server) in NIXL_CONNECTORS
        and at_least(version_of(launch, server), "0.33")
    ):
        config = merged(server, "kv-transfer-config")
        yield Problem(
            found=f"kv_role kv_both with {connector_of(server)}: deprecated, vLLM warns",
            expected="kv_producer on prefill servers, kv_consumer on decode servers",
            location=server.location if config is None else config.place("kv_role"),
        )
