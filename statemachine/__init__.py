"""The life of one streamed completion, as data: states, events, effects, transcript.

Reading order: `states` and `table` (what may happen), `messages` (events in, effects out),
`transcript` and `folding` (the answer so far), `session` (one life). Nothing here does I/O, reads a
clock or logs; time comes in as an argument and decisions go out as values. The architecture test
checks it.
"""

from statemachine.chunks import ChunkPattern, ChunkRun, JsonObject, ParsedChunk, RepeatedChunks
from statemachine.messages import (
    AnswerExceeded,
    AttemptStarted,
    Choice,
    ChunkReceived,
    ClientLeft,
    ClientReturned,
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
    SessionPolicy,
    SessionRecord,
    SessionRequest,
    StopRequested,
    StopUpstream,
    TimePassed,
    UpstreamFailed,
    UpstreamFinished,
    UsageSource,
    WaitExpired,
)
from statemachine.session import StreamSession
from statemachine.states import ClientGone, State
from statemachine.table import IGNORED, IllegalTransition, transitions
from statemachine.transcript import Transcript

__all__ = [
    "IGNORED",
    "AnswerExceeded",
    "AttemptStarted",
    "Choice",
    "ChunkPattern",
    "ChunkReceived",
    "ChunkRun",
    "ClientGone",
    "ClientLeft",
    "ClientReturned",
    "DeadlineExpired",
    "DrainExpired",
    "Effect",
    "Event",
    "Failure",
    "IllegalTransition",
    "JsonObject",
    "OpenStream",
    "ParsedChunk",
    "RepeatedChunks",
    "Save",
    "SendChunk",
    "SendDone",
    "SendError",
    "SendPing",
    "SessionPolicy",
    "SessionRecord",
    "SessionRequest",
    "State",
    "StopRequested",
    "StopUpstream",
    "StreamSession",
    "TimePassed",
    "Transcript",
    "UpstreamFailed",
    "UpstreamFinished",
    "UsageSource",
    "WaitExpired",
    "transitions",
]
