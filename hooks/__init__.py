"""What is patched, one module a family.  Each offers ``patches(...)``: steps for one `patching.PatchSet`."""
