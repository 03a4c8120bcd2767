"""Programs that answer one question each: `python -m benchmarks.questions.NAME`."""
