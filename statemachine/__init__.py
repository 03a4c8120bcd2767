"""The life of one streamed completion, as data: states, events, effects, transcript.

Reading order: `table` (what may happen), `messages` (what is said), `transcript` (what the
answer is so far), `session` (one life). Nothing here does I/O, reads a clock or logs; time
comes in as an argument and decisions go out as values. The architecture test holds it to that.
"""

from statemachine.messages import (
    AttemptStarted,
    Choice,
    ChunkPattern,
    ChunkReceived,
    ClientLeft,
    DeadlineExpired,
    DrainExpired,
    Effect,
    Event,
    Failure,
    OpenStream,
    Save,
    SendChunk,
    SendDone,
    SendError,
    SendPing,
    SendText,
    SessionPolicy,
    SessionRecord,
    SessionRequest,
    StopRequested,
    StopUpstream,
    TextReceived,
    TimePassed,
    UpstreamFailed,
    UpstreamFinished,
    UsageSource,
)
from statemachine.session import StreamSession
from statemachine.table import IGNORED, ClientGone, IllegalTransition, State, transitions
from statemachine.transcript import Transcript

__all__ = [
    "IGNORED",
    "AttemptStarted",
    "Choice",
    "ChunkPattern",
    "ChunkReceived",
    "ClientGone",
    "ClientLeft",
    "DeadlineExpired",
    "DrainExpired",
    "Effect",
    "Event",
    "Failure",
    "IllegalTransition",
    "OpenStream",
    "Save",
    "SendChunk",
    "SendDone",
    "SendError",
    "SendPing",
    "SendText",
    "SessionPolicy",
    "SessionRecord",
    "SessionRequest",
    "State",
    "StopRequested",
    "StopUpstream",
    "StreamSession",
    "TextReceived",
    "TimePassed",
    "Transcript",
    "UpstreamFailed",
    "UpstreamFinished",
    "UsageSource",
    "transitions",
]
