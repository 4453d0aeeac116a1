/*
 * The goldfish real-time clock (Linux driver rtc-goldfish); section "rtcN".
 *
 * 64-bit nanoseconds since 1970, low word first: reading TIME_LOW latches TIME_HIGH, writing TIME_HIGH first
 * and then TIME_LOW sets the clock, the same for the alarm. The time is the host's CLOCK_REALTIME plus an
 * offset, which the guest's writes change and which moves with the VM. An alarm thread ("rtcN") raises the
 * interrupt; it belongs to the device and ends in destroy.
 */
#ifndef FERRY_DEVICE_GOLDFISH_RTC_H
#define FERRY_DEVICE_GOLDFISH_RTC_H

#include "device/device.h"

#define GOLDFISH_RTC_MMIO_SIZE 0x1000

int goldfish_rtc_create(struct device **out, const struct device_env *env, unsigned index,
                        struct ferry_error *err);

#endif
