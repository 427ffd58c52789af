"""What tests share: daemons, clients, clocks and samples."""
