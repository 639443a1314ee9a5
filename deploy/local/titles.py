"""Made-up titles, so that a person sees at a glance what is recommended: twelve categories of four series in parts."""

from __future__ import annotations

PARTS = 5

SERIES = {
    "crime": ("The Borrowed Alibi", "Verdict at Noon", "The Ransom Clerk", "A Quiet Witness"),
    "space": ("Orbit of Glass", "The Slow Comet", "Lanterns on Titan", "Vacuum Choir"),
    "romance": ("Letters to Lisbon", "The Rain Waltz", "Two Umbrellas", "A Borrowed Summer"),
    "cooking": ("Salt and Smoke", "The Patient Loaf", "Forty Soups", "Noodle Street"),
    "history": ("The Salt Roads", "Kings of Chalk", "The Map Sellers", "Bronze Winter"),
    "nature": ("Under the Ice Shelf", "The Owl Year", "River Without Banks", "Kelp"),
    "comedy": ("The Wrong Butler", "Nine Bad Neighbours", "Lost Luggage", "The Polite Heist"),
    "horror": ("The Ninth Stair", "Hollow Lane", "What the Well Kept", "Night Ferry"),
    "sport": ("The Last Lap", "Underdogs of Ulm", "Rope and Rock", "The Penalty"),
    "music": ("The Blue Cassette", "Strings of Havana", "Encore", "The Tuning Fork"),
    "travel": ("Slow Train East", "Islands by Mail Boat", "The Desert Bus", "Borderlands"),
    "children": ("Pip and the Moon", "The Tiny Dragon", "Captain Marmalade", "The Sleepy Bear"),
}
"""Category to its series; each has `PARTS` parts, which are liked in order."""
