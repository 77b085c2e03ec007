#pragma once

#include <cstddef>

namespace lamina {

// Scratch memory of the calling thread, aligned to 64 bytes, kept from call to call: fresh memory
// would cost a page fault every 4 KB. The next call from the same thread invalidates what it
// returned.
void* workspace(std::size_t bytes);

// Gives it back; returns how many bytes it was.
std::size_t release_workspace();

}  // namespace lamina
