"""Work on many jobs, in this process, in several of this machine, or on a Ray cluster: one interface for all of it."""

from skipway.engines.choosing import Engine, find_engine
from skipway.engines.cluster import Needs, Ray
from skipway.engines.local import Local
from skipway.engines.work import Done, Event, Failed, Halt, Note, Tell, Told, Work, lacks_memory

__all__ = [
    "Done",
    "Engine",
    "Event",
    "Failed",
    "Halt",
    "Local",
    "Needs",
    "Note",
    "Ray",
    "Tell",
    "Told",
    "Work",
    "find_engine",
    "lacks_memory",
]
