"""What the cards cost: throughput, latency and rest, each beside a reference measured in the same run."""
