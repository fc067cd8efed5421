"""The tree of commands, and how words find their way in it.

Law: an object's module is imported when the object is named; names and summaries of all stand here.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module

from vnic.cli.grammar import Found, HelpWanted, Object, Verb, find_named
from vnic.cli.words import UsageError, Words, shown


@dataclass(frozen=True, slots=True)
class Entry:
    """One object of the first level, before its module is needed."""

    name: str
    summary: str
    module: str
    variable: str
    aliases: tuple[str, ...] = ()

    def load(self) -> Object:
        """Import the module and give its object."""
        found: Object = getattr(import_module(f"vnic.cli.{self.module}"), self.variable)
        return found


ENTRIES = (
    Entry("adapter", "virtual cards: a TAP for the host, a wire behind the card", "adapter", "ADAPTER"),
    Entry("wire", "a faulty wire on demand", "wire", "WIRE"),
    Entry("xfrm", "SAs and policies in the words of `ip xfrm`", "xfrm", "XFRM"),
    Entry("sa", "security associations, in short words", "sa", "SA"),
    Entry("policy", "security policies, in short words", "policy", "POLICY"),
    Entry("stats", "counters and drop reasons", "stats", "STATS"),
    Entry("mtu", "how large packets may be", "mtu", "MTU"),
    Entry("caps", "what the NIC can do", "caps", "CAPS"),
    Entry("oid", "NDIS requests in their binary form", "oid", "OID"),
    Entry("nbl", "frames with their out-of-band information", "nbl", "NBL"),
    Entry("monitor", "events as they happen", "monitor", "MONITOR"),
    Entry("daemon", "the daemon itself", "daemon", "DAEMON"),
)

HELP = "help"


@dataclass(slots=True)
class Place:
    """How far into the tree words have come."""

    path: tuple[str, ...] = ()
    object: Object | None = None
    verb: Verb | None = None

    @property
    def title(self) -> str:
        """The words of the command, written in full."""
        return " ".join(self.path)


def find(words: Words, place: Place) -> Verb:
    """Follow the words to a verb, noting in `place` how far they led.

    Raises:
        UsageError: they lead nowhere.
        HelpWanted: `help` stands where an object or a verb does.
    """
    names = [entry.name for entry in ENTRIES]
    if not words.more([*names, HELP]):
        raise HelpWanted
    text = words.peek()
    if text == HELP:
        raise HelpWanted
    entry = find_named(text, ENTRIES, {})
    if entry is None:
        raise UsageError(
            f"unknown object {shown(text)}", value=shown(text), allowed=", ".join([*names, HELP])
        )
    words.skip()
    place.path, place.object = (entry.name,), entry.load()
    while place.verb is None:
        _step(words, place, place.object)
    return place.verb


def _step(words: Words, place: Place, parent: Object) -> None:
    """Take one word further below `parent`."""
    children: tuple[Object | Verb, ...] = (*parent.objects, *parent.verbs)
    names = [one.name for one in children]
    default = next((verb for verb in parent.verbs if verb.name == parent.default), None)
    if not words.more([*names, HELP]):
        if default is None:
            raise UsageError("a word is missing", field=parent.name, allowed=", ".join([*names, HELP]))
        place.path, place.verb = (*place.path, default.name), default
        return
    text = words.peek()
    if text == HELP:
        raise HelpWanted
    found: Object | Verb | None
    if parent.bare:
        found = next((verb for verb in parent.verbs if text in (verb.name, *verb.aliases)), default)
        if found is default and text not in names:
            assert default is not None
            place.path, place.verb = (*place.path, default.name), default
            return
    else:
        found = find_named(text, children, parent.refused)
    if found is None:
        raise UsageError(f"unknown word {shown(text)}", value=shown(text), allowed=", ".join([*names, HELP]))
    words.skip()
    place.path = (*place.path, found.name)
    if isinstance(found, Object):
        place.object = found
    else:
        place.verb = found


def read(words: Words, place: Place) -> tuple[Verb, Found]:
    """Follow the words to a verb and read what stands behind it.

    Raises:
        UsageError: they make no command.
        HelpWanted: `help` stands in their place.
    """
    verb = find(words, place)
    return verb, verb.read(words)
