"""`onetrip keys`: make, list and revoke the keys with which clients call the server."""

import sys
from datetime import UTC, datetime
from pathlib import Path

import click
import msgspec
from rich.markup import escape
from rich.table import Table

from onetrip.cli.database import config_option, opened
from onetrip.cli.tables import print_table
from onetrip.settings import LOCAL_TENANT, Role
from onetrip.tenants import Tenants


@click.group("keys")
def command() -> None:
    """Keys of the server. A server that runs takes note within a second."""


@command.command("create")
@click.option(
    "--tenant", default=LOCAL_TENANT, help="Whose key; a tenant that there is not is made.", metavar="T", show_default=True
)
@click.option(
    "--role",
    type=click.Choice(["admin", "user", "reader"]),
    default="user",
    show_default=True,
    help="Manages tenants and sees all; runs its tenant's programs; only looks.",
)
@click.option("--label", default="", help="What it is for, as `onetrip keys list` will show it.", metavar="TEXT")
@click.option(
    "--tools",
    multiple=True,
    metavar="PATTERN",
    help="Server tools that it may use, such as 'shop.*'; may be repeated.  [default: all]",
)
@click.option("--no-tools", is_flag=True, help="It may use no server tool.")
@config_option
@click.option("--json", "as_json", is_flag=True, help="Print the key with its token as JSON.")
def create(
    tenant: str, role: Role, label: str, tools: tuple[str, ...], no_tools: bool, configuration: Path | None, as_json: bool
) -> None:
    """Make a key and print its token, which is shown this once: only a hash of it is kept."""
    with opened(configuration) as (store, settings):
        tenants = Tenants(store, settings)
        if tenants.create_tenant(tenant):
            print(f"made the tenant {tenant}", file=sys.stderr)
        token, key = tenants.create_key(tenant, role, label, tools=tools or (() if no_tools else None))
    if as_json:
        sys.stdout.write(
            msgspec.json.format(msgspec.json.encode({**msgspec.to_builtins(key), "token": token}), indent=2).decode() + "\n"
        )
        return
    print(token)
    print(f"key {key.id} of the tenant {tenant}, role {role}. The token is shown this once.", file=sys.stderr)


@command.command("list")
@click.option("--tenant", help="Only this one's.  [default: all]", metavar="T")
@config_option
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array.")
def list_(tenant: str | None, configuration: Path | None, as_json: bool) -> None:
    """List keys, also revoked ones. Tokens cannot be shown again."""
    with opened(configuration) as (store, settings):
        found = Tenants(store, settings).keys(tenant)
    if as_json:
        sys.stdout.write(msgspec.json.format(msgspec.json.encode(found), indent=2).decode() + "\n")
        return
    if not found:
        print("There are no keys yet.\nhint: `onetrip keys create` makes one.", file=sys.stderr)
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("id", "tenant", "role", "created", "revoked", "label"):
        table.add_column(column, no_wrap=column != "label")
    for key in found:
        revoked = "" if key.revoked is None else _time(key.revoked)
        table.add_row(key.id, escape(key.tenant), key.role, _time(key.created), revoked, escape(key.label))
    print_table(table)


@command.command("revoke")
@click.argument("key_id", metavar="ID")
@config_option
def revoke(key_id: str, configuration: Path | None) -> None:
    """Revoke the key ID for ever. What runs with it goes on; its next request is refused."""
    with opened(configuration) as (store, settings):
        if not Tenants(store, settings).revoke(key_id):
            print(f"{key_id} was revoked before.", file=sys.stderr)


def _time(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%MZ")
