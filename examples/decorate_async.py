"""Cache coroutine functions: one load for a crowd, and a source that may fail for a while."""

from __future__ import annotations

import asyncio

import cachekit

cache = cachekit.Cache()
calls = {"quote": 0, "rates": 0}


@cache.cached(ttl="1m")
async def quote(symbol: str) -> float:
    calls["quote"] += 1
    await asyncio.sleep(0.05)  # a slow service
    return 101.5


@cache.cached(ttl="20ms", grace="1h")
async def rates() -> dict[str, float]:
    calls["rates"] += 1
    if calls["rates"] > 1:
        raise ConnectionError("the service is down")
    return {"EUR": 1.0, "USD": 1.08}


async def main() -> None:
    crowd = await asyncio.gather(*(quote("ACME") for _ in range(500)))
    print(f"{len(crowd)} callers at once, {calls['quote']} load")

    await quote.invalidate("ACME")
    print("after invalidate:", await quote.peek("ACME"))
    await quote("ACME")
    print("loads now:", calls["quote"])

    await rates()
    await asyncio.sleep(0.03)  # the ttl is over, the grace is not
    print("in grace:", await rates())
    await asyncio.sleep(0.01)  # a refresh was tried behind the answer, and failed
    print("still served:", await rates())
    print("refreshes that failed:", cache.stats().counts["refresh_failed"])

    await cache.aio.close()
    cache.close()


if __name__ == "__main__":
    asyncio.run(main())
