"""Cache plain functions: hits, tags, an invalidating writer, many keys at once."""

from __future__ import annotations

import cachekit

cache = cachekit.Cache()
names = {7: "Ada", 8: "Grace"}
stock = {"nut": 3, "bolt": 5, "gear": 1}


@cache.cached(ttl="10m", tags=["user:{user_id}"])
def profile(user_id: int, *, upper: bool = False) -> str:
    print(f"  profile({user_id}) reads the database")
    return names[user_id].upper() if upper else names[user_id]


@cache.invalidates(tags=["user:{user_id}"])
def rename(user_id: int, name: str) -> None:
    names[user_id] = name


@cache.cached_many(key="stock:{sku}", ttl=30)
def in_stock(skus: list[str]) -> dict[str, int]:
    print(f"  in_stock({sorted(skus)}) reads the database")
    return {sku: stock[sku] for sku in skus if sku in stock}


def main() -> None:
    print("one load, then hits; spellings of one call share a key:")
    print(" ", profile(7), profile(user_id=7), profile(7, upper=False))
    print("  key:", profile.key(7))

    print("a write drops everything tagged user:7, and nothing else:")
    profile(7, upper=True)
    profile(8)
    rename(7, "Ada L.")
    print("  peek:", profile.peek(7), profile.peek(7, upper=True), profile.peek(8))
    print(" ", profile(7))

    print("only what misses is asked for, in one call:")
    in_stock(["nut", "bolt"])
    print(" ", in_stock(["nut", "gear", "unknown"]))

    print(profile.cache_info())
    cache.close()


if __name__ == "__main__":
    main()
