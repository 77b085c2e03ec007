#pragma once

// What this machine can do at most: the two limits of the roofline, and how far its cores are
// apart.

namespace lamina {

// Floating-point operations a second of `threads` threads; a multiply-add counts as two.
double peak_flops(bool f64, int threads, double seconds);

// Bytes read plus bytes written a second by `threads` threads that copy `bytes` in all.
double copy_bandwidth(long bytes, int threads, double seconds);

// Seconds that a cache line takes to another thread and back. Several times longer where the two
// cores share no cache.
double round_trip(double seconds);

}  // namespace lamina
