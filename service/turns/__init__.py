"""Has an agent speak in several turns: `Turns` asks the model, calls the tools that it wants, and asks
again. To a relay it is the upstream of one answer, as `service.stream.attempts` is.

Skip this room on a first reading: agents without tools never come here.
"""
