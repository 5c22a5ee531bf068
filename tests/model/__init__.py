"""One VM, its host and panicd in memory and in virtual time: thousands of histories are tried."""
