-- Still here. Counts up, writes the card, says what there is for this worker.
-- KEYS 1 hb  2 w:<wid>  3 ctl:<wid>  4 ctlq  5 cfg  6 cx  7 a  8 in  9 in:hi  10 in:lo  11 redo
--      12 pops  13 arr
-- ARGV 1 wid  2 now, then card fields
redis.call('HDEL', KEYS[1], '') -- a freeing write first, for a full Redis
if redis.call('HEXISTS', KEYS[1], ARGV[1]) == 0 then return {0} end
local count = redis.call('HINCRBY', KEYS[1], ARGV[1], 1)
redis.call('HSET', KEYS[2], 'beat_ms', ARGV[2], unpack(ARGV, 3))
redis.call('PEXPIRE', KEYS[2], 86400000)

-- One sample a second at most of how many jobs ever came: popped and waiting.
local newest = redis.call('LINDEX', KEYS[13], 0)
local ms = newest and tonumber(string.match(newest, '^(%d+):')) or 0
if tonumber(ARGV[2]) - ms >= 1000 then
  local waiting = 0
  for i = 8, 11 do waiting = waiting + redis.call('LLEN', KEYS[i]) end
  local pops = tonumber(redis.call('GET', KEYS[12]) or '0')
  redis.call('LPUSH', KEYS[13], ARGV[2] .. ':' .. string.format('%.0f', pops + waiting))
  redis.call('LTRIM', KEYS[13], 0, 3599)
end

local orders = redis.call('RPOP', KEYS[3], 16) or {}
local common = redis.call('RPOP', KEYS[4], 16) or {}
for i = 1, #common do orders[#orders + 1] = common[i] end
return {1, count, redis.call('HLEN', KEYS[7]), redis.call('HLEN', KEYS[6]),
        redis.call('HMGET', KEYS[5], 'paused', 'weight_hi', 'weight_in', 'weight_lo'), orders}
