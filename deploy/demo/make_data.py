"""Make the demo's two files again from UCI Online Retail's raw rows.

    python -m deploy.demo.make_data online_retail.csv.gz

The input is the data set as CSV (gzip or plain) with its eight original columns:
InvoiceNo, StockCode, Description, Quantity, InvoiceDate, UnitPrice, CustomerID, Country.
The outputs, beside this script, are `purchases.parquet` and `items.parquet` (see README.md).
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import polars as pl

# A product's stock code is five digits, perhaps with one or two letters for its variant; everything
# else (POST, M, C2, BANK CHARGES, gift vouchers …) is a service or a correction. PADS is a product.
PRODUCT_CODE = r"^(\d{5}[A-Z]{0,2}|PADS)$"

SMALL_WORDS = frozenset({"and", "with", "of", "in", "on", "for", "the", "to", "a", "from", "by"})
KEPT_UPPER = frozenset({"UK", "LED", "TV", "BBQ", "S/2", "S/3", "S/4", "S/6", "USA", "I", "II"})


def tidy_title(description: str) -> str:
    """A shouted description as a title: "SET OF  T-LIGHTS" → "Set of T-Lights"."""
    words = description.strip(" .,").split()
    return " ".join(_tidy_word(word, first=place == 0) for place, word in enumerate(words))


def _tidy_word(word: str, first: bool) -> str:
    if word.upper() in KEPT_UPPER:
        return word.upper()
    lower = word.lower()
    if lower in SMALL_WORDS and not first:
        return lower
    # A letter becomes large where a word begins: not after an apostrophe, nor after a digit (12cm).
    return re.sub(r"(?<![a-z0-9'’])[a-z]", lambda letter: letter.group().upper(), lower)


def read_products(raw: Path) -> pl.DataFrame:
    """The rows in which somebody bought a real product: known customer, quantity above 0."""
    rows = pl.read_csv(
        raw,
        columns=["InvoiceNo", "StockCode", "Description", "Quantity", "InvoiceDate", "UnitPrice",
                 "CustomerID"],
        schema_overrides={"InvoiceNo": pl.String, "StockCode": pl.String, "CustomerID": pl.String},
    )  # fmt: skip
    return rows.select(
        invoice=pl.col("InvoiceNo"),
        user_id=pl.col("CustomerID").str.strip_suffix(".0"),
        item_id=pl.col("StockCode").str.strip_chars().str.to_uppercase(),
        description=pl.col("Description"),
        quantity=pl.col("Quantity"),
        price=pl.col("UnitPrice"),
        # The source names no time zone; its clock times are kept as if they were UTC.
        event_time=pl.col("InvoiceDate").str.to_datetime("%Y-%m-%d %H:%M:%S").dt.epoch("ms"),
    ).filter(pl.col("user_id").is_not_null() & (pl.col("quantity") > 0) & pl.col("item_id").str.contains(PRODUCT_CODE))


def make_purchases(products: pl.DataFrame) -> pl.DataFrame:
    """One row per (invoice, item), in time order; repeated lines of an invoice are added up."""
    spent = pl.col("price") * pl.col("quantity")
    return (
        products.group_by("invoice", "item_id")
        .agg(
            pl.col("user_id").first(),
            pl.col("event_time").min(),
            pl.col("quantity").sum().cast(pl.Int32),
            price=(spent.sum() / pl.col("quantity").sum()).round(2),
        )
        .select("invoice", "user_id", "item_id", "event_time", "quantity", "price")
        .sort("event_time", "invoice", "item_id")
    )


def make_items(products: pl.DataFrame) -> pl.DataFrame:
    """One row per item: its most usual description as a title, and the median price paid."""
    by_use = (
        products.group_by("item_id", "description")
        .agg(pl.len().alias("uses"))
        .sort(["item_id", "uses", "description"], descending=[False, True, False])
        .unique("item_id", keep="first", maintain_order=True)
    )
    prices = products.filter(pl.col("price") > 0).group_by("item_id").agg(pl.col("price").median().round(2))
    return (
        by_use.join(prices, on="item_id", how="left")
        .select(
            "item_id",
            pl.col("description").map_elements(tidy_title, return_dtype=pl.String).alias("title"),
            "price",
        )
        .sort("item_id")
    )


def main() -> None:
    """Read the raw file named on the command line and write both files."""
    if len(sys.argv) != 2:
        sys.exit("usage: python -m deploy.demo.make_data online_retail.csv.gz")
    folder = Path(__file__).parent
    products = read_products(Path(sys.argv[1]))
    for name, frame in (("purchases", make_purchases(products)), ("items", make_items(products))):
        target = folder / f"{name}.parquet"
        frame.write_parquet(target, compression="zstd", compression_level=19, statistics=False)
        print(f"{target.name}: {frame.height} rows, {target.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
