"""The profile's own traffic: a stream that arrives whole, or its numbers mean nothing."""

import pytest

from benchmarks.cases import THROUGHPUT
from benchmarks.profile import FRAMES_PER_BURST, SEGMENTS_PER_FRAME, Stream


@pytest.mark.parametrize("case", THROUGHPUT)
def test_stream_arrives_whole_and_coalesced(case: str) -> None:
    stream = Stream(THROUGHPUT[case])
    stream.run(0.01)
    for card in (stream.left, stream.right):
        assert card.counters.drops == {}
    bursts, rest = divmod(stream.bytes_arrived, FRAMES_PER_BURST * len(stream.payload))
    assert bursts > 0
    assert rest == 0
    assert stream.bytes_arrived == stream.sequence_number - 1
    assert stream.wire_packets == bursts * FRAMES_PER_BURST * SEGMENTS_PER_FRAME
    assert stream.frames_arrived < stream.wire_packets / 10
