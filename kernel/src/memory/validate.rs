//! May this L1..L4 entry exist? Pure questions, no effects.
