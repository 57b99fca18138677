"""What policies mean. Pure: no I/O, no asyncio, no mitmproxy."""
