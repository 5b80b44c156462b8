"""Ranks the runs of a sweep and compares the values of each knob. Reads run folders, writes <sweep>/analysis/."""
