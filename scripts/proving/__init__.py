"""Proofs that need a machine of their own, made by debootstrap and run by systemd-nspawn."""
