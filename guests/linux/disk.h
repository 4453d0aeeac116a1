/*
 * A journal of numbered, checksummed records on a disk: written one by one, flushed, read back and verified.
 *
 * The journal is a ring of slots of DISK_RECORD bytes from the start of the disk (or of a file on it): record
 * n, counted from 1, is in slot n % slots. A record is little-endian: "FERRYREC", its number, the number of
 * slots, a checksum over all other words, then words that follow from the number. At start the slots are
 * read: the journal goes on after the largest number, and every slot must hold the newest record that belongs
 * there. One slot, the next to be written, may be torn.
 *
 *     disk journal slots=1024 last=0 bad=0 torn=0 dev=/dev/vda          at start
 *     disk 120 written=120 verified=240 errors=0 t=1.200 dev=/dev/vda  each 500 ms; 120 is surely on the disk
 * surely on the disk DISK ERROR record=7 slot=7 ...                         what was wrong
 *
 * Other checks, each run once: "disk check zero ok", "disk check discard ok", "disk check readonly ok", or
 * "... failed" with a reason.
 */
#ifndef FERRY_GUEST_DISK_H
#define FERRY_GUEST_DISK_H

/*
 * TEXT is "DEVICE[,fs=ext4][,size=4M][,rate=400K][,seconds=N][,check=zero|discard|readonly]". With fs=ext4
 * the device is mounted on /mnt and the journal is the file /mnt/journal. Returns a process exit status.
 */
int disk_run(const char *text);

#endif
