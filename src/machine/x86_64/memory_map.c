#include "machine/x86_64/memory_map.h"

#include "machine/x86_64/layout.h"

size_t memory_map_make(const struct memory *memory, struct memory_map_entry entries[static MEMORY_MAP_MAX])
{
    size_t count = 0;

    for (size_t i = 0; i < memory_region_count(memory); i++) {
        const struct memory_region *region = memory_region(memory, i);
        uint64_t start = region->guest_addr, end = start + region->size;

        if (start == 0) {
            entries[count++] = (struct memory_map_entry){0, X86_64_LOW_RAM_END, MEMORY_MAP_RAM};
            entries[count++] = (struct memory_map_entry){
                X86_64_LOW_RAM_END, X86_64_KERNEL_RAM - X86_64_LOW_RAM_END, MEMORY_MAP_RESERVED};
            start = X86_64_KERNEL_RAM;
        }
        entries[count++] = (struct memory_map_entry){start, end - start, MEMORY_MAP_RAM};
    }
    return count;
}
