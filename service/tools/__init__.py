"""Calls the tools that agents may use: those of MCP servers, and built-in ones.

`Toolbox` and `Calls` are the contract; what stands behind them speaks MCP, or is Python. Never here: when
a tool is called, and what its answer is for (`service.turns`).
"""
