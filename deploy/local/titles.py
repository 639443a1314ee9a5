"""Made-up titles, so that a person sees at a glance what is recommended: twelve categories of six series in parts."""

from __future__ import annotations

PARTS = 5

SERIES = {
    "crime": (
        "The Borrowed Alibi",
        "Verdict at Noon",
        "The Ransom Clerk",
        "A Quiet Witness",
        "Cold Ledger",
        "Third Key",
    ),
    "space": ("Orbit of Glass", "The Slow Comet", "Lanterns on Titan", "Vacuum Choir", "Redshift", "The Last Airlock"),
    "romance": (
        "Letters to Lisbon",
        "The Rain Waltz",
        "Two Umbrellas",
        "A Borrowed Summer",
        "Paper Hearts",
        "The Ferry",
    ),
    "cooking": (
        "Salt and Smoke",
        "The Patient Loaf",
        "Forty Soups",
        "Noodle Street",
        "The Copper Pan",
        "Sour and Sweet",
    ),
    "history": (
        "The Salt Roads",
        "Kings of Chalk",
        "The Map Sellers",
        "Bronze Winter",
        "A City of Bells",
        "The Long Siege",
    ),
    "nature": ("Under the Ice Shelf", "The Owl Year", "River Without Banks", "Kelp", "High Meadow", "The Wolf Census"),
    "comedy": (
        "The Wrong Butler",
        "Nine Bad Neighbours",
        "Lost Luggage",
        "The Polite Heist",
        "Uncle Trouble",
        "Desk 12",
    ),
    "horror": (
        "The Ninth Stair",
        "Hollow Lane",
        "What the Well Kept",
        "Night Ferry",
        "The Wax Room",
        "Teeth of Winter",
    ),
    "sport": ("The Last Lap", "Underdogs of Ulm", "Rope and Rock", "The Penalty", "Cold Water Mile", "Second Wind"),
    "music": (
        "The Blue Cassette",
        "Strings of Havana",
        "Encore",
        "The Tuning Fork",
        "Basement Tapes",
        "A Choir of Two",
    ),
    "travel": (
        "Slow Train East",
        "Islands by Mail Boat",
        "The Desert Bus",
        "Borderlands",
        "Harbour Days",
        "Roof of Peru",
    ),
    "children": (
        "Pip and the Moon",
        "The Tiny Dragon",
        "Captain Marmalade",
        "The Sleepy Bear",
        "Rocket Hen",
        "Moss Town",
    ),
}
"""Category to its series; each has `PARTS` parts, which are liked in order."""
