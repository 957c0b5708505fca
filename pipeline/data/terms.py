"""Terms that advertising, gambling and page furniture are made of, in Chinese and English, with points.

A term alone proves nothing: a document is spam when the points are many *for its length* (see the ``spam`` rule), so an
encyclopedia's article on casinos stays. Points: 1 hints, 2 is typical, 3 is hardly ever seen elsewhere.
"""

from __future__ import annotations

GAMBLING = {
    3: (
        "新葡京 葡京赌场 葡京娱乐 威尼斯人娱乐 真人荷官 美女荷官 首存送 首存优惠 存送 百家乐 时时彩 六合彩 北京赛车"
        " 彩票计划 博彩网 博彩平台 棋牌游戏平台 "
        "线上赌场 在线赌场 网上赌场 真人娱乐 娱乐城 老虎机 注册送彩金 送彩金 体育投注 皇冠体育 澳门皇冠 太阳城娱乐"
        " 金沙娱乐 永利娱乐 澳门金沙 澳门威尼斯人 "
        "澳門新葡京 新葡京賭場 線上賭場 線上娛樂城 娛樂城 百家樂 體育投注"
    ),
    2: (
        "在线投注 網上投注 网上投注 线上投注 足球投注 投注平台 秒到账 提款秒 秒提款 信誉第一 信誉保证 信誉平台 信譽第一"
        " 提现秒到 大额无忧 "
        "返水 代理返佣 赌球 下注 澳门赌场 稳赚不赔 包赢"
    ),
    1: "赌场 投注 博彩 彩金 提款 澳门 荷官 赌博 棋牌 彩票 充值 提现",
}
ADVERTISING = {
    3: (
        "加微信 加薇信 加v信 加我微信 微信号: 微信号： 日赚 月入过万 月入十万 躺赚 代开发票 开发票联系 办证 刻章办证"
        " 代办信用卡 无抵押贷款 "
        "黑户贷款 秒批贷款 贷款秒到 "
        "刷单兼职 兼职刷单 网赚 刷单返利 不是梦 包邮到付 私服 开服发布 增粉 涨粉 壮阳 丰胸 减肥茶 祛斑 男科医院"
        " 无痛人流 一夜情 裸聊 迷药 高仿 精仿 一比一复刻"
    ),
    2: (
        "优惠券 优惠劵 立即注册 立即购买 立即抢购 马上抢购 点击链接 点击领取 点击购买 点此领取 限时优惠 限时抢购"
        " 限时特价 免费领取 "
        "扫码领取 扫码关注 长按识别二维码 加qq 加群领取 "
        "联系qq 咨询热线 全国统一热线 货到付款 厂家直销 批发价格 厂家批发 特价促销 包邮 全场包邮 低价出售 专业办理"
        " 诚招代理 招商加盟 "
        "加盟热线 在家赚钱 轻松赚钱 快速贷款 上门服务 清仓大甩卖 最低价 欢迎来电 详情咨询"
    ),
    1: "优惠 促销 折扣 代理 加盟 兼职 微信 热线 特价 抢购 领取 红包 返利 贷款 价格优惠 点击",
}
GAMBLING_EN = {
    3: (
        "casino bonus|bonus code|no deposit bonus|online casino|casino online|free spins|play slots|slot machines"
        " online|online poker|poker online|sports betting site|betting site|online betting|online gambling|real money"
        " casino|welcome bonus|judi online|situs judi|slot gacor|agen slot|sbobet|jackpot slots"
    ),
    2: "casino|deposit bonus|place your bets|jackpot|roulette|blackjack|poker room|betting odds|gambling",
    1: "betting|slots|wager",
}
ADVERTISING_EN = {
    3: (
        "buy cheap|act now|enlarge your|make money fast|make money online|earn money online|work from home and"
        " earn|weight loss pills|diet pills|buy viagra|cheap viagra|viagra|cialis|levitra|replica watches|cheap"
        " watches|louis vuitton outlet|cheap jerseys|payday loans|payday loan|cash advance online|essay writing"
        " service|buy followers|free followers|buy backlinks|order now and save|100% free|risk free trial|double your"
        " income|get rich quick|hot singles|xxx videos|free porn|crypto giveaway|guaranteed profits|limited time only"
    ),
    2: (
        "click here|best price|best prices|limited offer|limited time offer|special offer|free shipping|order now|buy"
        " now|shop now|call now|sign up now|subscribe now|discount code|promo code|coupon code|lowest price|lowest"
        " prices|money back guarantee|satisfaction guaranteed|save big|hurry up|while supplies last|don't miss"
        " out|exclusive deal|no prescription|credit card required|increase your sales|once in a lifetime|you have been"
        " selected|you are a winner|claim your prize|earn extra cash|extra income|buy online|cheap price|visit our"
        " website|whatsapp us"
    ),
    1: "discount|cheap|coupon|for sale|% off|offer expires|bargain|clearance|wholesale|unsubscribe",
}
BOILERPLATE = (
    "all rights reserved|privacy policy|terms of use|terms of service|terms and conditions|cookie policy|uses"
    " cookies|use cookies|"
    "accept cookies|accept all cookies|enable javascript|"
    "javascript is disabled|javascript is required|requires javascript|please turn on javascript|skip to content|skip"
    " to main content|"
    "back to top|share on facebook|share on twitter|"
    "tweet this|share this article|follow us on|sign up for our newsletter|subscribe to our newsletter|log in to"
    " comment|leave a reply|"
    "related posts|related articles|"
    "read more articles|you may also like|advertisement|sponsored content|powered by wordpress|copyright ©|©|site"
    " map|sitemap|contact us|about us|"
    "版权所有|版權所有|未经许可不得转载|未经授权|转载请注明|icp备|icp证|公网安备|京公网安备|友情链接|上一篇|下一篇|返回顶部|回到顶部|"
    "隐私政策|隱私政策|服务条款|使用条款|用户协议|"
    "网站地图|关于我们|联系我们|分享到|扫一扫|微信扫码|关注公众号|关注我们|登录后评论|发表评论|热门推荐|相关阅读|相关文章|猜你喜欢|"
    "阅读原文|责任编辑|举报电话|点击查看更多|请开启javascript|加入收藏|设为首页"
)
FUNCTION_WORDS = (
    "the|be|to|of|and|that|have|with|in|is|for|it|this|are|you|le|la|les|des|et|est|une|que|dans|der|die|und|das|ist|nicht|el|los|de|en|y|por|con|para|"
    "di|il|che|non|per|em|um|uma|não|het|een|van|och|att|som|på|ve|bir|và|của|i|na|się|w|jest"
)
LOREM = "lorem ipsum|dolor sit amet"

CATEGORIES = ("spam", "boilerplate", "lorem_ipsum")


def weighted() -> list[tuple[str, int, int]]:
    """All terms as (term, number of its category in CATEGORIES, points); a piece of page furniture has its length as
    points."""
    found = [
        (t, 0, points) for group in (GAMBLING, ADVERTISING) for points, terms in group.items() for t in terms.split()
    ]
    found += [
        (t, 0, points)
        for group in (GAMBLING_EN, ADVERTISING_EN)
        for points, terms in group.items()
        for t in terms.split("|")
    ]
    found += [(t, 1, len(t)) for t in BOILERPLATE.split("|")]  # so that the points of a line are the characters covered
    found += [(t, 2, 1) for t in LOREM.split("|")]
    return sorted({(t, c): (t, c, p) for t, c, p in found if len(t) > 1}.values())
