"""The ledger of the paper's claims and the rules that judge them."""
