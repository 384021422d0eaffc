"""A FastAPI app with a cached endpoint and one that invalidates.

Serve it with ``uvicorn fastapi_app:app``; run as a program it asks itself a few questions.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, HTTPException

import cachekit

# CACHEKIT_URL=redis://... shares the cache between workers; unset, each worker has its own.
cache = cachekit.Cache.from_env()
prices = {"nut": 5, "bolt": 8}
queries = 0


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    yield
    await cache.aio.close()
    cache.close()


app = FastAPI(lifespan=lifespan)


@app.get("/prices/{sku}")
@cache.cached(ttl="5m", tags=["price:{sku}"])
async def price(sku: str) -> dict[str, str | int]:
    global queries
    queries += 1
    if sku not in prices:
        raise HTTPException(404, "no such product")  # an error is not cached
    return {"sku": sku, "price": prices[sku]}


@app.put("/prices/{sku}")
@cache.invalidates(tags=["price:{sku}"])
async def set_price(sku: str, cents: int) -> dict[str, int]:
    prices[sku] = cents
    return {"price": cents}


@app.get("/queries")
async def count() -> int:
    return queries


def main() -> None:
    from fastapi.testclient import TestClient

    with TestClient(app) as client:
        for _ in range(3):
            client.get("/prices/nut")
        print("3 requests,", client.get("/queries").json(), "query")
        client.put("/prices/nut", params={"cents": 6})
        print("after the write:", client.get("/prices/nut").json())
        print("unknown:", client.get("/prices/cog").status_code)


if __name__ == "__main__":
    main()
