"""Units of sizes."""

MIB = 1024 * 1024
