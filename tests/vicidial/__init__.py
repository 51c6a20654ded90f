"""VICIdial's daemon, replaced: recorded calls, races and strange texts, on a real pool and a real MariaDB."""
