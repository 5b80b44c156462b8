"""Which runs of a sweep are best and what each knob did; reads run folders only and writes <sweep>/analysis/."""
